//! Room for requests that wait for their responses, as much of it as a worker has. What is asked and
//! what is answered is others' business.

use std::cell::Cell;

/// A worker's room.
pub struct Rooms {
    taken: Cell<usize>,
    all: usize,
}

/// A request's room; dropped, it is free again.
pub struct Room<'a>(&'a Rooms);

impl Rooms {
    /// For so many requests at once.
    pub fn new(all: usize) -> Self {
        Self { taken: Cell::new(0), all }
    }

    /// Takes room for one, if there is any.
    pub fn take(&self) -> Option<Room<'_>> {
        (self.taken.get() < self.all).then(|| {
            self.taken.set(self.taken.get() + 1);
            Room(self)
        })
    }

    /// Whether more than half of it is taken: who does nothing with the room that he has should leave
    /// it to others.
    pub fn is_scarce(&self) -> bool {
        self.taken.get() > self.all / 2
    }
}

impl Drop for Room<'_> {
    fn drop(&mut self) {
        self.0.taken.set(self.0.taken.get() - 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_is_scarce_before_there_is_none_and_comes_back() {
        let rooms = Rooms::new(4);
        let mut held: Vec<_> = (0..2).map(|_| rooms.take().unwrap()).collect();
        assert!(!rooms.is_scarce());
        held.extend((0..2).map(|_| rooms.take().unwrap()));
        assert!(rooms.is_scarce() && rooms.take().is_none());
        held.pop();
        assert!(rooms.take().is_some());
        held.clear();
        assert!(!rooms.is_scarce());
    }
}
