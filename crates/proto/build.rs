//! Compiles the .proto files with protox: no protoc on any machine.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto");
    let files = protox::compile(
        [
            "csi/v1/csi.proto",
            "pluginregistration/registration.proto",
            "larder/authority/v1/authority.proto",
            "larder/control/v1/control.proto",
        ],
        ["proto"],
    )?;
    tonic_prost_build::configure().build_client(true).build_server(true).compile_fds(files)?;
    Ok(())
}
