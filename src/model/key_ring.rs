//! A key ring: the key for new values, and previous keys that only read.
//!
//! While an operator rotates `keys.encryption_key`, nodes with the old and with the new key run at
//! the same time. Therefore every value is read with all keys of the ring, except for keys that the
//! operator has discarded meanwhile.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

/// The length of a [`KeyId`].
pub const KEY_ID_LEN: usize = 8;

/// The id of an encryption key: the first bytes of a hash. It is no secret.
pub type KeyId = [u8; KEY_ID_LEN];

/// The current key and the previous keys.
#[derive(Debug, Clone)]
pub struct KeyRing<K> {
    current: K,
    previous: Vec<PreviousKey<K>>,
}

/// A previous key. Rings of keys that are derived from each other share the flag.
#[derive(Debug, Clone)]
struct PreviousKey<K> {
    key: K,
    is_discarded: Arc<AtomicBool>,
}

impl<K> PreviousKey<K> {
    fn with_key<T>(&self, key: T) -> PreviousKey<T> {
        PreviousKey { key, is_discarded: Arc::clone(&self.is_discarded) }
    }

    fn key(&self) -> Option<&K> {
        (!self.is_discarded.load(Ordering::Relaxed)).then_some(&self.key)
    }
}

impl<K> KeyRing<K> {
    /// Creates a ring.
    #[must_use]
    pub fn new(current: K, previous: Vec<K>) -> Self {
        let is_discarded = Arc::<AtomicBool>::default;
        let previous = previous.into_iter();
        let previous = previous.map(|key| PreviousKey { key, is_discarded: is_discarded() });
        Self { current, previous: previous.collect() }
    }

    /// Returns the key for new values.
    #[must_use]
    pub fn current(&self) -> &K {
        &self.current
    }

    /// Returns the key for new values, without the others.
    #[must_use]
    pub fn into_current(self) -> K {
        self.current
    }

    /// Returns the keys that only read, without discarded ones.
    pub fn previous(&self) -> impl Iterator<Item = &K> {
        self.previous.iter().filter_map(PreviousKey::key)
    }

    /// Returns all keys, the current one first, without discarded ones.
    pub fn iter(&self) -> impl Iterator<Item = &K> {
        std::iter::once(&self.current).chain(self.previous())
    }

    /// Discards the previous keys for which this is true, and no others: in this ring, and in those
    /// that are derived from the same keys. Returns true if that changes a key.
    pub fn set_discarded(&self, is_discarded: impl Fn(&K) -> bool) -> bool {
        let set = |previous: &PreviousKey<K>| {
            let discards = is_discarded(&previous.key);
            previous.is_discarded.swap(discards, Ordering::Relaxed) != discards
        };
        self.previous.iter().filter(|previous| set(previous)).count() > 0
    }

    /// Returns the ring of the keys that are derived from these.
    pub fn map<T>(&self, derive: impl Fn(&K) -> T) -> KeyRing<T> {
        let previous = self.previous.iter().map(|it| it.with_key(derive(&it.key)));
        KeyRing { current: derive(&self.current), previous: previous.collect() }
    }

    /// Returns the ring of the keys that are derived from these.
    ///
    /// # Errors
    /// The first error of `derive`.
    pub fn try_map<T, E>(&self, derive: impl Fn(&K) -> Result<T, E>) -> Result<KeyRing<T>, E> {
        let previous = self.previous.iter();
        let previous = previous.map(|it| derive(&it.key).map(|key| it.with_key(key)));
        let previous = previous.collect::<Result<_, E>>()?;
        Ok(KeyRing { current: derive(&self.current)?, previous })
    }
}

impl<K> From<K> for KeyRing<K> {
    /// A ring without previous keys.
    fn from(current: K) -> Self {
        Self { current, previous: Vec::new() }
    }
}
