//! How much the keeper holds.

use larder_telemetry::Exposition;
use prometheus_client::metrics::gauge::Gauge;

/// Items held.
pub const ITEMS: &str = "larder_keeper_items";
/// Descriptors held; an item has one or none.
pub const DESCRIPTORS: &str = "larder_keeper_descriptors";
/// Bytes of values held.
pub const VALUE_BYTES: &str = "larder_keeper_value_bytes";

/// All series of the keeper.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    pub(crate) items: Gauge,
    pub(crate) descriptors: Gauge,
    pub(crate) value_bytes: Gauge,
}

impl Metrics {
    /// Makes the series known to the admin server.
    #[must_use]
    pub fn register(exposition: &mut Exposition) -> Self {
        let m = Self::default();
        exposition.single(ITEMS, "Items held for the mounter and the node plugin", m.items.clone());
        exposition.single(DESCRIPTORS, "Descriptors held", m.descriptors.clone());
        exposition.single(VALUE_BYTES, "Bytes of the values of all items", m.value_bytes.clone());
        m
    }
}

/// What the keeper shows at `/metrics`, for its documentation.
#[must_use]
pub fn exposition() -> Exposition {
    Exposition::default().with(Metrics::register)
}
