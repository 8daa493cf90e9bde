//! Who and where: names, GPUs, reservations, and bytes on a GPU.

use crate::Error;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::num::NonZeroU64;
use std::sync::Arc;

/// A name that is cheap to copy: a host, a GPU, a model, a holder.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(from = "String", into = "String")]
pub struct Name(Arc<str>);

impl Name {
    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<&str> for Name {
    fn from(text: &str) -> Self {
        Name(text.into())
    }
}

impl From<String> for Name {
    fn from(text: String) -> Self {
        Name(text.into())
    }
}

impl From<Name> for String {
    fn from(name: Name) -> Self {
        name.0.as_ref().to_string()
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

/// A GPU of a host. By UUID rather than index: indices move when a card falls off the bus.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(from = "HostAndGpu", into = "HostAndGpu")]
pub struct GpuId(Arc<(Name, Name)>);

/// As it is written.
#[derive(Serialize, Deserialize)]
struct HostAndGpu {
    host: Name,
    gpu: Name,
}

impl From<HostAndGpu> for GpuId {
    fn from(id: HostAndGpu) -> Self {
        GpuId::new(id.host, id.gpu)
    }
}

impl From<GpuId> for HostAndGpu {
    fn from(id: GpuId) -> Self {
        let (host, gpu) = (*id.0).clone();
        HostAndGpu { host, gpu }
    }
}

impl GpuId {
    /// `GpuId::new("host-1", "GPU-5f2c..")`.
    pub fn new(host: impl Into<Name>, gpu: impl Into<Name>) -> Self {
        GpuId(Arc::new((host.into(), gpu.into())))
    }

    /// The host; a plan never spans two.
    pub fn host(&self) -> &Name {
        &self.0.0
    }

    /// The GPU within it.
    pub fn gpu(&self) -> &Name {
        &self.0.1
    }
}

impl fmt::Display for GpuId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.host(), self.gpu())
    }
}

impl fmt::Debug for GpuId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A reservation's number. Never given twice, not even after a restart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ReservationId(pub u64);

impl fmt::Display for ReservationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "#{}", self.0)
    }
}

/// Exact bytes on one GPU. Never zero: a size that is unknown or zero does not get this far, nor
/// past deserialisation.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Share {
    /// Where.
    pub gpu: GpuId,
    /// How many.
    pub bytes: NonZeroU64,
}

impl Share {
    /// [`Error::NoSize`] where `bytes` is zero or `None`.
    pub fn new(gpu: GpuId, bytes: impl Into<Option<u64>>) -> Result<Self, Error> {
        let bytes = size(bytes)?;
        Ok(Share { gpu, bytes })
    }
}

/// A size that is known and not zero.
pub fn size(bytes: impl Into<Option<u64>>) -> Result<NonZeroU64, Error> {
    bytes.into().and_then(NonZeroU64::new).ok_or(Error::NoSize)
}

/// Shares that one model can have: some, each GPU once, all of one host.
pub(crate) fn check_shares(shares: &[Share]) -> Result<(), Error> {
    let Some((first, rest)) = shares.split_first() else {
        return Err(Error::NoSize);
    };
    if let Some(other) = rest.iter().find(|s| s.gpu.host() != first.gpu.host()) {
        return Err(Error::TwoHosts(first.gpu.clone(), other.gpu.clone()));
    }
    for (i, share) in rest.iter().enumerate() {
        if shares.iter().take(i + 1).any(|s| s.gpu == share.gpu) {
            return Err(Error::GpuTwice(share.gpu.clone()));
        }
    }
    Ok(())
}
