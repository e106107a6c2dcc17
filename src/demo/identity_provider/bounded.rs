//! A map with a limit: when it is full the oldest entry makes room. It knows nothing of what it
//! holds.

use std::collections::{BTreeMap, HashMap};

/// A map from text to `V` that never holds more than its limit.
pub(super) struct Bounded<V> {
    limit: usize,
    next_age: u64,
    entries: HashMap<String, (u64, V)>,
    by_age: BTreeMap<u64, String>,
}

impl<V> Bounded<V> {
    pub(super) fn new(limit: usize) -> Self {
        Self { limit, next_age: 0, entries: HashMap::new(), by_age: BTreeMap::new() }
    }

    /// Puts an entry in as the youngest, in place of an older one of the same key.
    pub(super) fn insert(&mut self, key: String, value: V) {
        self.remove(&key);
        while self.entries.len() >= self.limit
            && let Some((_, oldest)) = self.by_age.pop_first()
        {
            self.entries.remove(&oldest);
        }
        self.by_age.insert(self.next_age, key.clone());
        self.entries.insert(key, (self.next_age, value));
        self.next_age += 1;
    }

    pub(super) fn get(&self, key: &str) -> Option<&V> {
        self.entries.get(key).map(|(_, value)| value)
    }

    pub(super) fn get_mut(&mut self, key: &str) -> Option<&mut V> {
        self.entries.get_mut(key).map(|(_, value)| value)
    }

    pub(super) fn remove(&mut self, key: &str) -> Option<V> {
        let (age, value) = self.entries.remove(key)?;
        self.by_age.remove(&age);
        Some(value)
    }

    /// Keeps the entries that `keep` says yes to.
    pub(super) fn retain(&mut self, mut keep: impl FnMut(&V) -> bool) {
        let Self { entries, by_age, .. } = self;
        entries.retain(|_, (age, value)| {
            let kept = keep(value);
            if !kept {
                by_age.remove(age);
            }
            kept
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_makes_room() {
        let mut map = Bounded::new(2);
        for key in ["a", "b", "c"] {
            map.insert(key.to_owned(), key);
        }
        assert_eq!((map.get("a"), map.get("b"), map.get("c")), (None, Some(&"b"), Some(&"c")));
    }

    #[test]
    fn what_was_written_again_or_taken_out_leaves_no_trace() {
        let mut map = Bounded::new(2);
        for value in 0..10 {
            map.insert("a".to_owned(), value);
        }
        map.insert("b".to_owned(), 0);
        assert_eq!((map.get("a"), map.by_age.len()), (Some(&9), 2));
        map.remove("a");
        map.retain(|_| false);
        assert!(map.entries.is_empty() && map.by_age.is_empty());
    }
}
