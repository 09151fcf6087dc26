//! Bytes that are built for an address: words, texts, and pointers to them.

/// Bytes at an address.
pub(super) struct Blob {
    base: u64,
    bytes: Vec<u8>,
}

impl Blob {
    /// `size` zeroes at an address.
    pub(super) fn new(base: u64, size: usize) -> Self {
        Self { base, bytes: vec![0; size] }
    }

    /// The address after the last byte.
    pub(super) fn end(&self) -> u64 {
        self.base.saturating_add(self.bytes.len() as u64)
    }

    /// The number of bytes.
    pub(super) fn len(&self) -> u32 {
        u32::try_from(self.bytes.len()).unwrap_or(u32::MAX)
    }

    pub(super) fn bytes(self) -> Vec<u8> {
        self.bytes
    }

    /// Adds zeroes up to a multiple of `alignment`. Returns the address.
    pub(super) fn align(&mut self, alignment: usize) -> u64 {
        let len = self.bytes.len().checked_next_multiple_of(alignment).unwrap_or(self.bytes.len());
        self.bytes.resize(len, 0);
        self.end()
    }

    /// Adds bytes. Returns their address.
    pub(super) fn add(&mut self, bytes: &[u8]) -> u64 {
        let at = self.end();
        self.bytes.extend(bytes);
        at
    }

    /// Adds a text with a final NUL. Returns its address.
    pub(super) fn text(&mut self, text: &[u8]) -> u64 {
        let at = self.add(text);
        self.bytes.push(0);
        at
    }

    /// Adds words of 32 bits. Returns their address.
    pub(super) fn words(&mut self, words: &[u32]) -> u64 {
        let at = self.end();
        self.bytes.extend(words.iter().flat_map(|word| word.to_le_bytes()));
        at
    }

    /// Adds a word of 64 bits.
    pub(super) fn wide(&mut self, word: u64) {
        self.bytes.extend(word.to_le_bytes());
    }

    /// Replaces bytes at an offset.
    pub(super) fn set(&mut self, offset: usize, bytes: &[u8]) {
        if let Some(to) = self.bytes.get_mut(offset..).and_then(|rest| rest.get_mut(..bytes.len())) {
            to.copy_from_slice(bytes);
        }
    }

    /// Replaces a word of 32 bits at an offset.
    pub(super) fn set_word(&mut self, offset: usize, word: u32) {
        self.set(offset, &word.to_le_bytes());
    }
}

/// The low 32 bits of an address. All addresses of RAM are below 3 GiB.
pub(super) fn low(address: u64) -> u32 {
    u32::try_from(address).unwrap_or(u32::MAX)
}
