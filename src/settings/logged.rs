//! Which notes and variables the administrator's logs show: a worker may tell the frontend these, and no others.
//!
//! Modules of the frontend act on some names, and some keep pointers of their own in a request's notes, which they
//! would follow: no list of forbidden names is complete.
//!
//! Runs in: frontend, when it starts.  Trusts: the configuration.  Owns: the names.
//! Never: refuses a format; what it cannot read names nothing.

use std::collections::BTreeSet;

/// Names, in lower case: httpd's tables do not tell cases apart.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LoggedNames {
    notes: BTreeSet<Vec<u8>>,
    env: BTreeSet<Vec<u8>>,
}

impl LoggedNames {
    /// A directive and its arguments, as they stand in the configuration.
    pub fn learn(&mut self, directive: &[u8], arguments: &[u8]) {
        if !directive.to_ascii_lowercase().windows(3).any(|w| w == b"log") {
            return;
        }
        let text = arguments.to_ascii_lowercase();
        for (at, _) in text.iter().enumerate().filter(|(_, b)| **b == b'{') {
            let rest = text.get(at + 1..).unwrap_or_default();
            let Some(end) = rest.iter().position(|b| *b == b'}') else { break };
            let (name, kind) = (&rest[..end], rest.get(end + 1));
            // %{name}n and %{name}e of formats, %{NOTE:name} and %{ENV:name} of expressions.
            if let Some(name) = name.strip_prefix(b"note:") {
                self.notes.insert(name.to_vec());
            } else if let Some(name) = name.strip_prefix(b"env:").or(name.strip_prefix(b"reqenv:")) {
                self.env.insert(name.to_vec());
            } else if kind == Some(&b'n') {
                self.notes.insert(name.to_vec());
            } else if kind == Some(&b'e') {
                self.env.insert(name.to_vec());
            }
        }
        // env=name and env=!name of CustomLog, note('name') and reqenv('name') of expressions.
        for (word, is_note) in [(&b"env=!"[..], false), (b"env=", false), (b"env('", false), (b"note('", true)] {
            for at in memchr::memmem::find_iter(&text, word) {
                let rest = &text[at + word.len()..];
                let end = rest.iter().position(|b| b"'\" \t)!".contains(b)).unwrap_or(rest.len());
                let list = if is_note { &mut self.notes } else { &mut self.env };
                if end > 0 {
                    list.insert(rest[..end].to_vec());
                }
            }
        }
    }

    pub fn has_note(&self, name: &[u8]) -> bool {
        self.notes.contains(&name.to_ascii_lowercase())
    }

    pub fn has_env(&self, name: &[u8]) -> bool {
        !self.env.is_empty() && self.env.contains(&name.to_ascii_lowercase())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn learnt(arguments: &str) -> LoggedNames {
        let mut names = LoggedNames::default();
        names.learn(b"CustomLog", arguments.as_bytes());
        names
    }

    #[test]
    fn formats_name_notes_and_variables() {
        let names = learnt(r#"logs/a "%h %{X-Note}n %>{who}n \"%{User-Agent}i\" %{APP_ENV}e %200,304{Old}e %{x}^ti""#);
        assert!(
            names.has_note(b"x-note") && names.has_note(b"WHO") && names.has_env(b"app_env") && names.has_env(b"Old")
        );
        assert!(!names.has_note(b"User-Agent") && !names.has_env(b"User-Agent") && !names.has_note(b"APP_ENV"));
        assert!(!names.has_note(b"modsecurity-tx-context"));
    }

    #[test]
    fn conditions_name_variables() {
        assert!(learnt("logs/a common env=!dontlog").has_env(b"dontlog"));
        assert!(learnt("logs/a common env=image").has_env(b"image"));
        let names = learnt(r#"logs/a common "expr=%{ENV:a} == 'x' || reqenv('b') || note('c') || %{NOTE:d} == ''""#);
        assert!(names.has_env(b"a") && names.has_env(b"b") && names.has_note(b"c") && names.has_note(b"d"));
    }

    #[test]
    fn only_directives_of_logs_count() {
        let mut names = LoggedNames::default();
        names.learn(b"Header", b"set X %{secret}e");
        assert_eq!(names, LoggedNames::default());
    }

    #[test]
    fn broken_formats_name_nothing() {
        for text in ["%{", "%{a", "{}n", "env=", "env=!", "note('", "}{"] {
            let names = learnt(text);
            assert!(!names.has_note(b"a") && !names.has_env(b"a"), "{text}");
        }
    }
}
