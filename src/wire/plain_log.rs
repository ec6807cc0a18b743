//! Lines of httpd's error log on the standard error of a pool's process, where there is no exchange to carry them. There
//! are two forms: our own, `<5 mod_example.c> text`, with the level (0 emerg to 15 trace8) and the module's source file,
//! which may be missing; and the one in which httpd itself writes lines of no server to standard error, `[time]
//! [example:notice] [pid 7:tid 7] text`.
//!
//! A script can write the same: it chooses level and module of its own pool's lines, as it can in an exchange. The front
//! of the line in the log, which names pool and pid, is never made of this.
//!
//! Runs in: worker and zygote (write), controller and frontend (read).  Trusts: nothing.  Owns: the form of such lines.
//! Never: does I/O, panics on any input.

/// Largest level.
const MAX_LEVEL: u8 = 15;
/// Longest name of a module's source file, in bytes.
const MAX_MODULE: usize = 64;

/// httpd's names of the levels, as its error log shows them.
const LEVELS: [&[u8]; 16] = [
    b"emerg", b"alert", b"crit", b"error", b"warn", b"notice", b"info", b"debug", b"trace1", b"trace2", b"trace3",
    b"trace4", b"trace5", b"trace6", b"trace7", b"trace8",
];

/// A line, taken apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PlainLine<'l> {
    pub level: u8,
    /// Source file (`mod_example.c`) or short name (`example`); empty when unknown.
    pub module: &'l [u8],
    pub text: &'l [u8],
}

impl<'l> PlainLine<'l> {
    /// The line as bytes. A module with an unusual name is left out.
    pub fn encode(&self) -> Vec<u8> {
        let module = if is_module(self.module) { self.module } else { b"" };
        [format!("<{} ", self.level.min(MAX_LEVEL)).as_bytes(), module, b"> ", self.text].concat()
    }

    /// `None` for a line of any other form: something that a program just wrote.
    pub fn decode(line: &'l [u8]) -> Option<Self> {
        Self::decode_own(line).or_else(|| Self::decode_httpds(line))
    }

    fn decode_httpds(line: &'l [u8]) -> Option<Self> {
        let (_, rest) = bracketed(line)?;
        let (what, rest) = bracketed(rest)?;
        let (who, text) = bracketed(rest)?;
        let colon = what.iter().position(|b| *b == b':')?;
        let (module, level) = (what.get(..colon)?, what.get(colon + 1..)?);
        let level = LEVELS.iter().position(|name| *name == level)?;
        let level = u8::try_from(level).ok()?;
        (who.starts_with(b"pid ") && is_module(module)).then_some(Self { level, module, text })
    }

    fn decode_own(line: &'l [u8]) -> Option<Self> {
        let rest = line.strip_prefix(b"<")?;
        let end = rest.iter().take(MAX_MODULE + 4).position(|b| *b == b'>')?;
        let (front, text) = (rest.get(..end)?, rest.get(end..)?.strip_prefix(b"> ")?);
        let space = front.iter().position(|b| *b == b' ')?;
        let (level, module) = (front.get(..space)?, front.get(space + 1..)?);
        let level: u8 = std::str::from_utf8(level).ok()?.parse().ok()?;
        (level <= MAX_LEVEL && is_module(module)).then_some(Self { level, module, text })
    }
}

/// What stands in brackets at the front, and what follows behind a space.
fn bracketed(line: &[u8]) -> Option<(&[u8], &[u8])> {
    let rest = line.strip_prefix(b"[")?;
    let end = rest.iter().position(|b| *b == b']')?;
    Some((rest.get(..end)?, rest.get(end..)?.strip_prefix(b"] ")?))
}

fn is_module(name: &[u8]) -> bool {
    name.len() <= MAX_MODULE && name.iter().all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_comes_back_as_it_was() {
        let line = PlainLine { level: 5, module: b"mod_security2.c", text: b"ModSecurity <x> started" };
        assert_eq!(line.encode(), b"<5 mod_security2.c> ModSecurity <x> started");
        assert_eq!(PlainLine::decode(&line.encode()), Some(line));
        let bare = PlainLine { level: 200, module: b"a module>", text: b"" };
        assert_eq!(PlainLine::decode(&bare.encode()), Some(PlainLine { level: 15, module: b"", text: b"" }));
    }

    #[test]
    fn httpds_own_form_is_understood() {
        let line = b"[Mon Nov 23 02:22:27.379739 2026] [security2:notice] [pid 11013:tid 11013] ModSecurity: [x] y";
        let found = PlainLine { level: 5, module: b"security2", text: b"ModSecurity: [x] y" };
        assert_eq!(PlainLine::decode(line), Some(found));
    }

    #[test]
    fn what_has_another_form_is_just_text() {
        for text in [
            "",
            "<",
            "<5",
            "<5>",
            "<5> x",
            "<16 m.c> x",
            "<-1 m.c> x",
            "<5 m c> x",
            "<5 m.c>x",
            "5 m.c> x",
            "<5 \x1b> x",
            "PHP Warning: <5 m.c> x",
            "[time] [core:loud] [pid 1] x",
            "[time] [core:error] x",
            "[time] [core:error] [tid 1] x",
            "[time] [co re:error] [pid 1] x",
            "[time] [core:error] [pid 1]",
            &format!("<5 {}> x", "m".repeat(65)),
        ] {
            assert_eq!(PlainLine::decode(text.as_bytes()), None, "{text}");
        }
    }
}
