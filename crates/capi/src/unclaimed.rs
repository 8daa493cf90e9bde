//! Reservations whose numbers nobody has been told yet.

use vramfit::ledger::Store;
use vramfit::{Host, ReservationId};

/// A reservation that is released again unless it is told: after an error, or a panic, nobody could.
pub(crate) struct Unclaimed<'a, S: Store> {
    host: &'a Host<S>,
    id: ReservationId,
    is_told: bool,
}

impl<'a, S: Store> Unclaimed<'a, S> {
    pub fn new(host: &'a Host<S>, id: ReservationId) -> Self {
        let is_told = false;
        Unclaimed { host, id, is_told }
    }

    /// From now on the caller's.
    pub fn told(mut self) {
        self.is_told = true;
    }
}

impl<S: Store> Drop for Unclaimed<'_, S> {
    fn drop(&mut self) {
        if !self.is_told {
            // Why the call failed is what is answered; that the journal fails too shows at the next call.
            let _ = self.host.release(self.id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vramfit::Volatile;
    use vramfit::ledger::{Request, Shape};

    #[test]
    fn what_is_not_told_is_released() {
        let host = Host::open(Volatile, "h", vramfit::gpu_list("8GiB").unwrap()).unwrap();
        let reserve = || {
            let shape = Shape::anywhere([1 << 30]).unwrap();
            let request = Request::new("m", "loader", vec![shape]);
            let grant = host.ledger().reserve(&request, 0).unwrap();
            Unclaimed::new(&host, grant.id)
        };
        let held = || host.ledger().state().unwrap().reservations().count();
        let unclaimed = reserve();
        assert_eq!(held(), 1);
        drop(unclaimed);
        assert_eq!(held(), 0);
        reserve().told();
        assert_eq!(held(), 1);
    }
}
