//! The escapes of httpd's error log.
//!
//! Runs in: worker.  Trusts: nothing.  Owns: nothing.  Never: makes a NUL byte.

/// Undoes `ap_escape_errorlog_item`: the frontend's httpd escapes again.
pub fn unescape(text: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((&byte, behind)) = rest.split_first() {
        rest = behind;
        if byte != b'\\' {
            out.push(byte);
            continue;
        }
        let Some((&code, behind)) = rest.split_first() else {
            out.push(byte);
            break;
        };
        rest = behind;
        match code {
            b'b' => out.push(8),
            b'n' => out.push(b'\n'),
            b'r' => out.push(b'\r'),
            b't' => out.push(b'\t'),
            b'v' => out.push(11),
            b'x' => match rest.get(..2).and_then(|hex| u8::from_str_radix(std::str::from_utf8(hex).ok()?, 16).ok()) {
                Some(0) | None => out.extend_from_slice(b"\\x"),
                Some(value) => {
                    out.push(value);
                    rest = &rest[2..];
                }
            },
            b'\\' | b'"' => out.push(code),
            other => out.extend_from_slice(&[b'\\', other]),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::unescape;

    #[test]
    fn escapes_are_undone_and_nul_never_appears() {
        assert_eq!(unescape(br"a\nb\\c\x1bd\x00e\"), b"a\nb\\c\x1bd\\x00e\\");
        assert_eq!(unescape(b"plain"), b"plain");
        assert_eq!(unescape(br"\xzz"), br"\xzz");
    }
}
