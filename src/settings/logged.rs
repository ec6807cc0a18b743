//! Which notes and variables the administrator's logs show: a worker may tell the frontend these, and no others.
//!
//! Modules of the frontend act on some names, and some keep pointers of their own in a request's notes, which they
//! would follow: no list of forbidden names is complete.
//!
//! Runs in: frontend, when it starts.  Trusts: the configuration.  Owns: the names.
//! Never: refuses a format; what it cannot read names nothing.

use std::ffi::{CStr, CString};

/// Names as they stand in the configuration, each once: httpd's tables do not tell cases apart.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LoggedNames {
    notes: Vec<CString>,
    env: Vec<CString>,
}

fn has(names: &[CString], name: &[u8]) -> bool {
    names.iter().any(|known| known.as_bytes().eq_ignore_ascii_case(name))
}

fn add(names: &mut Vec<CString>, name: &[u8]) {
    if let (false, Ok(new)) = (has(names, name), CString::new(name)) {
        names.push(new);
    }
}

impl LoggedNames {
    /// A directive and its arguments, as they stand in the configuration.
    pub fn learn(&mut self, directive: &[u8], arguments: &[u8]) {
        if !directive.to_ascii_lowercase().windows(3).any(|w| w == b"log") {
            return;
        }
        for (at, _) in arguments.iter().enumerate().filter(|(_, b)| **b == b'{') {
            let rest = arguments.get(at + 1..).unwrap_or_default();
            let Some(end) = rest.iter().position(|b| *b == b'}') else { break };
            let (name, kind) = (&rest[..end], rest.get(end + 1).map(u8::to_ascii_lowercase));
            let after = |prefix: &[u8]| {
                let (begin, name) = name.split_at_checked(prefix.len())?;
                begin.eq_ignore_ascii_case(prefix).then_some(name)
            };
            // %{name}n and %{name}e of formats, %{NOTE:name} and %{ENV:name} of expressions.
            if let Some(name) = after(b"note:") {
                add(&mut self.notes, name);
            } else if let Some(name) = after(b"env:").or(after(b"reqenv:")) {
                add(&mut self.env, name);
            } else if kind == Some(b'n') {
                add(&mut self.notes, name);
            } else if kind == Some(b'e') {
                add(&mut self.env, name);
            }
        }
        let text = arguments.to_ascii_lowercase();
        // env=name and env=!name of CustomLog, note('name') and reqenv('name') of expressions.
        for (word, is_note) in [(&b"env=!"[..], false), (b"env=", false), (b"env('", false), (b"note('", true)] {
            for at in memchr::memmem::find_iter(&text, word) {
                let rest = &arguments[at + word.len()..];
                let end = rest.iter().position(|b| b"'\" \t)!".contains(b)).unwrap_or(rest.len());
                let list = if is_note { &mut self.notes } else { &mut self.env };
                if end > 0 {
                    add(list, &rest[..end]);
                }
            }
        }
    }

    pub fn notes(&self) -> impl Iterator<Item = &CStr> {
        self.notes.iter().map(CString::as_c_str)
    }

    pub fn env(&self) -> impl Iterator<Item = &CStr> {
        self.env.iter().map(CString::as_c_str)
    }

    pub fn has_note(&self, name: &[u8]) -> bool {
        has(&self.notes, name)
    }

    pub fn has_env(&self, name: &[u8]) -> bool {
        has(&self.env, name)
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
    fn each_name_is_told_once_as_it_was_first_written() {
        let mut names = learnt("%{App_Env}e %{APP_ENV}e %{Note:Who} %{who}N");
        names.learn(b"LogFormat", b"%{app_env}e");
        assert_eq!(names.env().collect::<Vec<_>>(), [c"App_Env"]);
        assert_eq!(names.notes().collect::<Vec<_>>(), [c"Who"]);
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
