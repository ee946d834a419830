//! Workers in this process, on addresses of the loopback, with an S3 server beside them.

mod bounds;
mod damage;
mod disks;
mod harness;
mod keep;
mod life;
mod members;
mod origin;
mod preload;
mod reads;
mod replicas;
mod strangers;
mod stripes;
