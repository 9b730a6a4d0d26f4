//! A key ring: the key for new values, and previous keys that only read.
//!
//! While an operator rotates `keys.encryption_key`, nodes with the old and with the new key run at
//! the same time. Therefore every value is read with all keys of the ring.

/// The length of a [`KeyId`].
pub const KEY_ID_LEN: usize = 8;

/// The id of an encryption key: the first bytes of a hash. It is no secret.
pub type KeyId = [u8; KEY_ID_LEN];

/// The current key and the previous keys.
#[derive(Debug, Clone)]
pub struct KeyRing<K> {
    current: K,
    previous: Vec<K>,
}

impl<K> KeyRing<K> {
    /// Creates a ring.
    #[must_use]
    pub fn new(current: K, previous: Vec<K>) -> Self {
        Self { current, previous }
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

    /// Returns the keys that only read.
    #[must_use]
    pub fn previous(&self) -> &[K] {
        &self.previous
    }

    /// Returns all keys, the current one first.
    pub fn iter(&self) -> impl Iterator<Item = &K> {
        std::iter::once(&self.current).chain(&self.previous)
    }

    /// Returns the ring of the keys that are derived from these.
    pub fn map<T>(&self, derive: impl Fn(&K) -> T) -> KeyRing<T> {
        KeyRing {
            current: derive(&self.current),
            previous: self.previous.iter().map(derive).collect(),
        }
    }

    /// Returns the ring of the keys that are derived from these.
    ///
    /// # Errors
    /// The first error of `derive`.
    pub fn try_map<T, E>(&self, derive: impl Fn(&K) -> Result<T, E>) -> Result<KeyRing<T>, E> {
        Ok(KeyRing {
            current: derive(&self.current)?,
            previous: self.previous.iter().map(derive).collect::<Result<_, _>>()?,
        })
    }
}

impl<K> From<K> for KeyRing<K> {
    /// A ring without previous keys.
    fn from(current: K) -> Self {
        Self { current, previous: Vec::new() }
    }
}
