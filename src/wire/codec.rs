//! Big-endian integers and length-prefixed byte strings: what every message is made of.
//!
//! Runs in: every role.  Trusts: nothing it reads.  Owns: nothing.  Never: panics on any input, reads past its slice.

use std::fmt;

/// Why bytes are not a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Malformed {
    /// The message ends before its value does.
    Truncated,
    /// A number or a string is outside its documented range; names the field.
    Field(&'static str),
    /// Bytes are left behind the last value.
    Trailing,
}

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Truncated => f.write_str("message ends too early"),
            Self::Field(name) => write!(f, "bad value in field {name}"),
            Self::Trailing => f.write_str("bytes behind the end of the message"),
        }
    }
}

impl std::error::Error for Malformed {}

/// Takes values from the front of a byte slice.
#[derive(Debug, Clone)]
pub struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    pub fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    /// All that is left.
    pub fn rest(&self) -> &'a [u8] {
        self.rest
    }

    /// The next `n` bytes.
    pub fn take(&mut self, n: usize) -> Result<&'a [u8], Malformed> {
        let (head, rest) = self.rest.split_at_checked(n).ok_or(Malformed::Truncated)?;
        self.rest = rest;
        Ok(head)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let (head, rest) = self.rest.split_first_chunk::<N>().ok_or(Malformed::Truncated)?;
        self.rest = rest;
        Ok(*head)
    }

    pub fn u8(&mut self) -> Result<u8, Malformed> {
        Ok(self.array::<1>()?[0])
    }

    pub fn u16(&mut self) -> Result<u16, Malformed> {
        self.array().map(u16::from_be_bytes)
    }

    pub fn u32(&mut self) -> Result<u32, Malformed> {
        self.array().map(u32::from_be_bytes)
    }

    pub fn i32(&mut self) -> Result<i32, Malformed> {
        self.array().map(i32::from_be_bytes)
    }

    pub fn u64(&mut self) -> Result<u64, Malformed> {
        self.array().map(u64::from_be_bytes)
    }

    pub fn i64(&mut self) -> Result<i64, Malformed> {
        self.array().map(i64::from_be_bytes)
    }

    /// A string of at most 65,535 bytes with its length in two bytes before it.
    pub fn short(&mut self) -> Result<&'a [u8], Malformed> {
        let n = self.u16()?;
        self.take(usize::from(n))
    }

    /// A string with its length in four bytes before it.
    pub fn long(&mut self) -> Result<&'a [u8], Malformed> {
        let n = self.u32()?;
        self.take(usize::try_from(n).map_err(|_| Malformed::Truncated)?)
    }

    /// Fails if anything is left.
    pub fn finish(self) -> Result<(), Malformed> {
        if self.rest.is_empty() {
            Ok(())
        } else {
            Err(Malformed::Trailing)
        }
    }
}

/// Appends values to a byte vector.
pub trait Put {
    fn put(&mut self, bytes: &[u8]);

    fn put_u8(&mut self, v: u8) {
        self.put(&[v]);
    }
    fn put_u16(&mut self, v: u16) {
        self.put(&v.to_be_bytes());
    }
    fn put_u32(&mut self, v: u32) {
        self.put(&v.to_be_bytes());
    }
    fn put_i32(&mut self, v: i32) {
        self.put(&v.to_be_bytes());
    }
    fn put_u64(&mut self, v: u64) {
        self.put(&v.to_be_bytes());
    }
    fn put_i64(&mut self, v: i64) {
        self.put(&v.to_be_bytes());
    }
    /// Counterpart of [`Reader::short`]; what is beyond 65,535 bytes is cut off, callers check before.
    fn put_short(&mut self, v: &[u8]) {
        let n = u16::try_from(v.len()).unwrap_or(u16::MAX);
        self.put_u16(n);
        self.put(&v[..usize::from(n)]);
    }
    /// Counterpart of [`Reader::long`].
    fn put_long(&mut self, v: &[u8]) {
        let n = u32::try_from(v.len()).unwrap_or(u32::MAX);
        self.put_u32(n);
        self.put(&v[..n as usize]);
    }
}

impl Put for Vec<u8> {
    fn put(&mut self, bytes: &[u8]) {
        self.extend_from_slice(bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_survive_the_round_trip() {
        let mut out = Vec::new();
        out.put_u8(7);
        out.put_u16(0xfffe);
        out.put_i32(-5);
        out.put_u64(1 << 40);
        out.put_short(b"short");
        out.put_long(b"long");
        let mut r = Reader::new(&out);
        assert_eq!(r.u8(), Ok(7));
        assert_eq!(r.u16(), Ok(0xfffe));
        assert_eq!(r.i32(), Ok(-5));
        assert_eq!(r.u64(), Ok(1 << 40));
        assert_eq!(r.short(), Ok(&b"short"[..]));
        assert_eq!(r.long(), Ok(&b"long"[..]));
        assert_eq!(r.finish(), Ok(()));
    }

    #[test]
    fn a_length_beyond_the_message_is_truncated_and_takes_nothing() {
        let mut r = Reader::new(&[0, 9, b'x']);
        assert_eq!(r.short(), Err(Malformed::Truncated));
        let mut r = Reader::new(&[0xff, 0xff, 0xff, 0xff, 1]);
        assert_eq!(r.long(), Err(Malformed::Truncated));
    }

    #[test]
    fn bytes_left_over_are_an_error() {
        assert_eq!(Reader::new(b"x").finish(), Err(Malformed::Trailing));
    }
}
