//! Single flight: one maker of an absent key, however many callers.
//!
//! A flight is also the ticket of its key: a put, a removal or a clear of the key voids it under the lock of the
//! key's shard, and only the value of a flight that is still valid is cached. A voided maker's value goes to those
//! who wait for it and no further. Makers that ask for each other's keys would wait for ever: the one that would
//! close the circle gets an error.

use crate::error::{Error, Result};
use bytes::Bytes;
use parking_lot::{Condvar, Mutex};
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::ThreadId;
use thermocline_storage::Ident;

#[derive(Debug)]
pub(crate) struct Flight {
    key: Bytes,
    maker: ThreadId,
    void: AtomicBool,
    done: Mutex<Option<Result<Bytes>>>,
    landed: Condvar,
}

impl Flight {
    pub(crate) fn is_void(&self) -> bool {
        self.void.load(Ordering::Acquire)
    }

    fn has_landed(&self) -> bool {
        self.done.lock().is_some()
    }

    /// Waits for the maker. A maker that vanishes lands with an error, so this ends.
    fn wait(&self) -> Result<Bytes> {
        let mut done = self.done.lock();
        loop {
            if let Some(result) = &*done {
                return result.clone();
            }
            self.landed.wait(&mut done);
        }
    }
}

/// Which part a caller has in a flight.
#[derive(Debug)]
pub(crate) enum Part {
    /// It makes the value.
    Lead(Lead),
    /// It waits for the one who does.
    Follow(Arc<Flight>),
    /// It is the maker of this very key.
    Recursive,
}

/// The maker's hold on its flight: lands it, whatever happens.
#[derive(Debug)]
pub(crate) struct Lead {
    flights: Arc<Flights>,
    ident: Ident,
    pub(crate) flight: Arc<Flight>,
}

impl Lead {
    /// Gives the result to everybody who waits.
    pub(crate) fn land(self, result: Result<Bytes>) {
        *self.flight.done.lock() = Some(result);
    }
}

impl Drop for Lead {
    fn drop(&mut self) {
        self.flights.remove(self.ident, &self.flight);
        let mut done = self.flight.done.lock();
        if done.is_none() {
            *done = Some(Err(Error::Maker(Arc::from(Box::<dyn std::error::Error + Send + Sync>::from(
                "the maker panicked",
            )))));
        }
        self.flight.landed.notify_all();
    }
}

/// All flights of a cache.
#[derive(Debug, Default)]
pub(crate) struct Flights {
    /// Keeps `void` off the mutex while there are none.
    count: AtomicUsize,
    table: Mutex<HashMap<Ident, Vec<Arc<Flight>>>>,
    /// The flight that each waiting thread waits for. Entered before the wait begins, and only if no chain of them
    /// leads back to the thread itself: so there is never a circle, and a chain ends with a thread that does not wait.
    waits: Mutex<HashMap<ThreadId, Arc<Flight>>>,
}

impl Flights {
    /// Joins the flight of a key, or starts it.
    pub(crate) fn join(self: &Arc<Self>, ident: Ident, key: &[u8]) -> Part {
        let mut table = self.table.lock();
        let of_ident = table.entry(ident).or_default();
        if let Some(flight) = of_ident.iter().find(|f| f.key == key && !f.is_void()) {
            if flight.maker == std::thread::current().id() {
                return Part::Recursive;
            }
            return Part::Follow(flight.clone());
        }
        if of_ident.iter().any(|f| f.key == key && f.maker == std::thread::current().id()) {
            return Part::Recursive;
        }
        let flight = Arc::new(Flight {
            key: Bytes::copy_from_slice(key),
            maker: std::thread::current().id(),
            void: AtomicBool::new(false),
            done: Mutex::new(None),
            landed: Condvar::new(),
        });
        of_ident.push(flight.clone());
        self.count.fetch_add(1, Ordering::Release);
        Part::Lead(Lead { flights: self.clone(), ident, flight })
    }

    /// Waits for the maker of a flight that was joined. `Recursive` if that maker waits, by however many others, for
    /// one that this thread is making.
    pub(crate) fn wait(&self, flight: &Arc<Flight>) -> Result<Bytes> {
        let me = std::thread::current().id();
        {
            let mut waits = self.waits.lock();
            let mut next = Some(flight);
            // Who waits for what has landed does not wait any more, whatever its maker does now.
            while let Some(f) = next.filter(|f| !f.has_landed()) {
                if f.maker == me {
                    return Err(Error::Recursive);
                }
                next = waits.get(&f.maker);
            }
            waits.insert(me, flight.clone());
        }
        let result = flight.wait();
        self.waits.lock().remove(&me);
        result
    }

    fn remove(&self, ident: Ident, flight: &Arc<Flight>) {
        let mut table = self.table.lock();
        if let Some(of_ident) = table.get_mut(&ident) {
            of_ident.retain(|f| !Arc::ptr_eq(f, flight));
            if of_ident.is_empty() {
                table.remove(&ident);
            }
        }
        self.count.fetch_sub(1, Ordering::Release);
    }

    /// Voids the flights of an identity. Called under the lock of its shard.
    pub(crate) fn void(&self, ident: Ident) {
        if self.count.load(Ordering::Acquire) == 0 {
            return;
        }
        for flight in self.table.lock().get(&ident).into_iter().flatten() {
            flight.void.store(true, Ordering::Release);
        }
    }

    /// Voids the flights of every key with a prefix.
    pub(crate) fn void_prefix(&self, prefix: &[u8]) {
        if self.count.load(Ordering::Acquire) == 0 {
            return;
        }
        for flight in self.table.lock().values().flatten().filter(|f| f.key.starts_with(prefix)) {
            flight.void.store(true, Ordering::Release);
        }
    }

    /// Voids every flight for which `which` holds.
    pub(crate) fn void_all(&self, which: impl Fn(Ident) -> bool) {
        if self.count.load(Ordering::Acquire) == 0 {
            return;
        }
        for (_, flights) in self.table.lock().iter().filter(|(i, _)| which(**i)) {
            for flight in flights {
                flight.void.store(true, Ordering::Release);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flight_is_voided_with_its_key_a_prefix_of_it_and_everything() {
        let flights = Arc::new(Flights::default());
        let [mine, other] = [7, 8].map(Ident::from_bits);
        let voided = |by: &dyn Fn()| match flights.join(mine, b"key") {
            Part::Lead(lead) => {
                by();
                lead.flight.is_void()
            }
            part => panic!("{part:?}"),
        };
        assert!(!voided(&|| flights.void(other)) && voided(&|| flights.void(mine)));
        assert!(!voided(&|| flights.void_prefix(b"x")) && voided(&|| flights.void_prefix(b"ke")));
        assert!(!voided(&|| flights.void_all(|i| i == other)) && voided(&|| flights.void_all(|i| i == mine)));
        assert!(!voided(&|| {}), "a new one");
    }
}
