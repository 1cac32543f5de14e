//! What a server has done, as text for Prometheus.

use std::fmt;

use http::Response;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric as _, MetricEncoder, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::registry::{Registry, Unit};
use s3dcp_partition::PartitionView;
use s3s::Body;

use crate::partitions::shown;
use crate::stats::ServerStats;

/// Where they are, below a name that no bucket can have.
const PATH: &str = "/_s3dcp/metrics";

/// The answer to a request for metrics, which takes no signature; `None` for another path.
pub(crate) fn page(
    path: &str,
    now: impl FnOnce() -> (ServerStats, Vec<PartitionView>),
) -> Option<Response<Body>> {
    if path != PATH {
        return None;
    }
    let (stats, partitions) = now();
    let mut registry = Registry::with_prefix("s3dcp_server");
    registry.register_collector(Box::new(Snapshot { stats, partitions }));
    let mut body = String::new();
    // writing to a text does not fail
    let _ = text::encode(&mut body, &registry);
    Some(shown("application/openmetrics-text; version=1.0.0; charset=utf-8", body))
}

#[derive(Debug)]
struct Snapshot {
    stats: ServerStats,
    partitions: Vec<PartitionView>,
}

/// Counters of one name, by a label.
struct Family<'a> {
    name: &'a str,
    help: &'a str,
    label: &'a str,
}

impl Family<'_> {
    fn encode<'n>(
        &self,
        encoder: &mut DescriptorEncoder<'_>,
        counts: impl Iterator<Item = (&'n str, u64)>,
    ) -> fmt::Result {
        let mut family = encoder.encode_descriptor(self.name, self.help, None, MetricType::Counter)?;
        for (label, count) in counts {
            ConstCounter::new(count).encode(family.encode_family(&[(self.label, label)])?)?;
        }
        Ok(())
    }
}

impl Collector for Snapshot {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let requests =
            Family { name: "requests", help: "Requests with a valid signature", label: "operation" };
        requests.encode(
            &mut encoder,
            self.stats.requests.iter().map(|(operation, count)| (&**operation, *count)),
        )?;
        let responses =
            Family { name: "responses", help: "Responses, refused requests included", label: "status" };
        let by_status: Vec<_> =
            self.stats.responses.iter().map(|(status, n)| (status.to_string(), *n)).collect();
        responses.encode(&mut encoder, by_status.iter().map(|(status, count)| (&**status, *count)))?;
        for (name, help, bytes) in [
            ("received", "Object data received", self.stats.bytes_received),
            ("sent", "Object data handed out to be sent", self.stats.bytes_sent),
        ] {
            let metric: MetricEncoder<'_> =
                encoder.encode_descriptor(name, help, Some(&Unit::Bytes), MetricType::Counter)?;
            ConstCounter::new(bytes).encode(metric)?;
        }
        let admitted = Family {
            name: "partition_admitted",
            help: "Requests that a partition took since it came to be",
            label: "first_key",
        };
        admitted
            .encode(&mut encoder, self.partitions.iter().map(|view| (&*view.first_key, view.admitted)))?;
        let refused = Family {
            name: "partition_refused",
            help: "Requests that it answered 503 SlowDown",
            label: "first_key",
        };
        refused.encode(&mut encoder, self.partitions.iter().map(|view| (&*view.first_key, view.refused)))
    }
}
