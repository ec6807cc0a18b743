//! The chunked coding of HTTP/1, taken off: an `nph-` script may send its body that way.
//!
//! Runs in: worker.  Trusts: nothing; a script wrote it.  Owns: nothing.  Never: does I/O, panics on any input.

use super::codec::Malformed;

/// Digits of a chunk's size: more do not fit.
const MAX_DIGITS: u32 = 16;

/// How far the body is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Place {
    #[default]
    Size,
    /// Behind the digits, up to the line's end.
    Extension,
    Data,
    /// The line end behind a chunk.
    Behind,
    /// At the start of a line behind the last chunk.
    Trailer,
    InTrailer,
    End,
}

/// A body being decoded.
#[derive(Debug, Clone, Copy, Default)]
pub struct Chunked {
    place: Place,
    /// Of the chunk: bytes still to come.
    left: u64,
    digits: u32,
}

impl Chunked {
    /// Takes bytes from the front: how many, and which of them are content.
    pub fn take<'b>(&mut self, bytes: &'b [u8]) -> Result<(usize, &'b [u8]), Malformed> {
        let wrong = Err(Malformed::Field("chunk"));
        for (at, &byte) in bytes.iter().enumerate() {
            match (self.place, byte) {
                (Place::Size, b'\n') if self.digits > 0 => self.line_ends(),
                (Place::Size, b';' | b' ' | b'\t' | b'\r') if self.digits > 0 => self.place = Place::Extension,
                (Place::Size, _) => {
                    let Some(digit) = char::from(byte).to_digit(16) else { return wrong };
                    self.digits += 1;
                    if self.digits > MAX_DIGITS {
                        return wrong;
                    }
                    self.left = self.left << 4 | u64::from(digit);
                }
                (Place::Extension, b'\n') => self.line_ends(),
                (Place::Data, _) => {
                    let here = &bytes[at..];
                    let n = usize::try_from(self.left).unwrap_or(usize::MAX).min(here.len());
                    self.left -= n as u64;
                    if self.left == 0 {
                        self.place = Place::Behind;
                    }
                    return Ok((at + n, &here[..n]));
                }
                (Place::Behind, b'\n') => *self = Self::default(),
                (Place::Trailer, b'\n') => self.place = Place::End,
                (Place::InTrailer, b'\n') => self.place = Place::Trailer,
                (Place::Behind | Place::Trailer, b'\r') | (Place::Extension | Place::InTrailer, _) => {}
                (Place::Trailer, _) => self.place = Place::InTrailer,
                (Place::Behind, _) => return wrong,
                (Place::End, _) => break,
            }
        }
        Ok((bytes.len(), &[]))
    }

    fn line_ends(&mut self) {
        self.place = if self.left == 0 { Place::Trailer } else { Place::Data };
    }

    /// The last chunk was there: what came of its trailers does not matter.
    pub fn is_complete(&self) -> bool {
        matches!(self.place, Place::Trailer | Place::InTrailer | Place::End)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decode(coded: &[u8], piece: usize) -> Result<(Vec<u8>, bool), Malformed> {
        let (mut body, mut content) = (Chunked::default(), Vec::new());
        for mut bytes in coded.chunks(piece) {
            while !bytes.is_empty() {
                let (taken, data) = body.take(bytes)?;
                assert!(taken > 0);
                content.extend_from_slice(data);
                bytes = &bytes[taken..];
            }
        }
        Ok((content, body.is_complete()))
    }

    #[test]
    fn however_it_arrives_the_content_is_the_same() {
        let coded = b"0005\r\nabcde\r\n1; foo=bar\r\nf\r\nA\nghijklmnop\n0\r\nTrailer: x\r\n\r\nignored";
        for piece in 1..coded.len() {
            assert_eq!(decode(coded, piece), Ok((b"abcdefghijklmnop".to_vec(), true)), "in pieces of {piece}");
        }
    }

    #[test]
    fn without_its_last_chunk_it_is_not_complete() {
        for coded in [&b""[..], b"5\r\nab", b"2\r\nab\r\n", b"2\r\nab\r\n0"] {
            assert!(!decode(coded, 3).expect("no error").1, "{coded:?}");
        }
    }

    #[test]
    fn what_is_not_chunked_is_refused() {
        for coded in [&b"hello"[..], b"\r\n", b";x\r\n", b"2\r\nabc", b"10000000000000000\r\n", b"-1\r\n"] {
            assert!(decode(coded, 4).is_err(), "{coded:?}");
        }
    }
}
