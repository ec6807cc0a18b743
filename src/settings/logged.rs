//! Which notes and variables the administrator's logs show: a worker may tell the frontend these, and no others.
//!
//! Modules of the frontend act on some names, and some keep pointers of their own in a request's notes, which they
//! would follow: no list of forbidden names is complete.
//!
//! What decides whether a request is logged at all is never taken from a worker: `env=!name`, and whatever an expression
//! reads. A name of `env=name` can only add a line.
//!
//! Runs in: frontend, when it starts.  Trusts: the configuration.  Owns: the names.
//! Never: refuses a format; what it cannot read names nothing.

use std::ffi::{CStr, CString};

/// Names as they stand in the configuration, each once: httpd's tables do not tell cases apart.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LoggedNames {
    notes: Vec<CString>,
    env: Vec<CString>,
    /// Variables that keep a request out of a log (`env=!name`).
    silencing: Vec<Vec<u8>>,
    /// Conditions that are expressions, in lower case.
    conditions: Vec<Vec<u8>>,
}

/// What META says beside notes and variables, and the variables of expressions that read it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Claim {
    User,
    AuthType,
    Handler,
    FileName,
}

impl Claim {
    fn read_by(self) -> &'static [&'static [u8]] {
        match self {
            Self::User => &[b"remote_user"],
            Self::AuthType => &[b"auth_type"],
            Self::Handler => &[b"handler"],
            Self::FileName => &[b"request_filename", b"script_filename"],
        }
    }
}

fn has(names: &[CString], name: &[u8]) -> bool {
    names.iter().any(|known| known.as_bytes().eq_ignore_ascii_case(name))
}

/// The words of a directive's arguments, as httpd splits them (`ap_getword_conf`).
pub fn words(arguments: &[u8]) -> Vec<Vec<u8>> {
    let mut words = Vec::new();
    let mut rest = arguments.trim_ascii_start();
    while let Some((&first, behind)) = rest.split_first() {
        let quote = Some(first).filter(|b| matches!(b, b'"' | b'\''));
        let mut at = if quote.is_some() { behind } else { rest };
        let mut word = Vec::new();
        while let Some((&byte, behind)) = at.split_first() {
            at = behind;
            match (byte, quote, behind.first()) {
                (b'\\', Some(_), Some(&next)) if next == b'\\' || Some(next) == quote => {
                    word.push(next);
                    at = &behind[1..];
                }
                (_, Some(quote), _) if byte == quote => break,
                (_, None, _) if byte.is_ascii_whitespace() => break,
                _ => word.push(byte),
            }
        }
        words.push(word);
        rest = at.trim_ascii_start();
    }
    words
}

/// Behind a name of an expression's function or variable: what it looks up there is computed, not written.
fn is_computed(expression: &[u8], function: &[u8]) -> bool {
    memchr::memmem::find_iter(expression, function).any(|at| {
        let rest = expression[at + function.len()..].trim_ascii_start();
        match rest.split_first() {
            // %{env:name}
            Some((b':', name)) => {
                let end = name.iter().position(|b| *b == b'}').unwrap_or(name.len());
                name[..end].iter().any(|b| matches!(b, b'%' | b'$' | b'{'))
            }
            // env('name')
            Some((b'(', argument)) => {
                let Some((quote @ (b'\'' | b'"'), text)) = argument.trim_ascii_start().split_first() else {
                    return true;
                };
                let Some(end) = text.iter().position(|b| b == quote) else { return true };
                let (name, behind) = text.split_at(end);
                name.iter().any(|b| matches!(b, b'%' | b'$' | b'\\'))
                    || !behind[1..].trim_ascii_start().starts_with(b")")
            }
            // Another way to call it (a word of a longer name is none).
            Some((b' ' | b'%' | b'\'' | b'"', _)) => true,
            _ => false,
        }
    })
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
        self.learn_conditions(directive, arguments);
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

    /// `CustomLog file format env=!name`, `expr=...`; of LogMessage each argument behind the message.
    fn learn_conditions(&mut self, directive: &[u8], arguments: &[u8]) {
        let is_message = directive.eq_ignore_ascii_case(b"LogMessage");
        for word in words(arguments).into_iter().skip(1) {
            let word = word.to_ascii_lowercase();
            if let Some(name) = word.strip_prefix(b"env=!") {
                self.silencing.push(name.to_vec());
            } else if let Some(expression) = word.strip_prefix(b"expr=") {
                self.conditions.push(expression.to_vec());
            } else if is_message && !word.starts_with(b"hook=") {
                self.conditions.push(word);
            }
        }
    }

    /// Whether some condition may look up this name: it stands there, or what is looked up is computed.
    fn is_read(&self, name: &[u8], functions: &[&[u8]]) -> bool {
        let name = name.to_ascii_lowercase();
        self.conditions.iter().any(|expression| {
            memchr::memmem::find(expression, &name).is_some() || functions.iter().any(|f| is_computed(expression, f))
        })
    }

    /// A log shows this note, and none asks it whether to log the request: a worker may say it.
    pub fn takes_note(&self, name: &[u8]) -> bool {
        self.has_note(name) && !self.is_read(name, &[b"note"])
    }

    /// The same for a variable.
    pub fn takes_env(&self, name: &[u8]) -> bool {
        let silences = || self.silencing.iter().any(|known| known.eq_ignore_ascii_case(name));
        self.has_env(name) && !silences() && !self.is_read(name, &[b"env"])
    }

    /// No log asks for it whether to log the request.
    pub fn takes(&self, claim: Claim) -> bool {
        let is_read =
            |expression: &Vec<u8>| claim.read_by().iter().any(|name| memchr::memmem::find(expression, name).is_some());
        !self.conditions.iter().any(is_read)
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
    fn what_keeps_a_request_out_of_a_log_is_not_taken() {
        let mut names = learnt("logs/a common env=!dontlog");
        names.learn(b"LogFormat", b"\"%{DontLog}e %{app}e %{image}e\" shown");
        names.learn(b"CustomLog", b"logs/b shown env=image");
        names.learn(b"GlobalLog", b"logs/c shown \"env=!Quiet\"");
        for name in [&b"dontlog"[..], b"DONTLOG", b"quiet", b"QUIET"] {
            assert!(names.has_env(name) && !names.takes_env(name), "{name:?}");
        }
        assert!(names.takes_env(b"app") && names.takes_env(b"IMAGE") && !names.takes_env(b"other"));
        assert!(names.takes(Claim::User) && names.takes(Claim::Handler));
    }

    #[test]
    fn what_an_expression_reads_is_not_taken() {
        for condition in [
            r#""expr=%{ENV:quiet} != '1' && %{NOTE:quiet} != '1'""#,
            r#""expr=reqenv('quiet') != '1' && note('quiet') != '1'""#,
            r#""expr=env(\"QUIET\") != '1' && note( 'Quiet' ) == ''""#,
            r#"'expr=-z reqenv("quiet") && -z note("quiet")'"#,
            "expr=-z%{reqenv:quiet}||-z%{note:quiet}",
        ] {
            let mut names = learnt(r#"logs/a "%{quiet}e %{quiet}n %{app}e %{app}n""#);
            names.learn(b"CustomLog", format!("logs/b common {condition}").as_bytes());
            assert!(!names.takes_env(b"quiet") && !names.takes_note(b"Quiet"), "{condition}");
            assert!(names.takes_env(b"app") && names.takes_note(b"app"), "{condition}");
        }
    }

    #[test]
    fn where_an_expression_computes_a_name_none_is_taken() {
        for condition in [
            r#""expr=reqenv('qui' . 'et') != '1' && note('qui' . 'et') != '1'""#,
            r#""expr=reqenv(%{HTTP_X}) != '1' && note(%{HTTP_X}) != '1'""#,
            r#""expr=reqenv('%{HTTP_X}') != '1' && note('$1') != '1'""#,
            r#""expr=reqenv ( tolower('A') ) != '1' && note ( tolower('A') ) != '1'""#,
        ] {
            let mut names = learnt(r#"logs/a "%{app}e %{app}n""#);
            names.learn(b"CustomLog", format!("logs/b common {condition}").as_bytes());
            assert!(!names.takes_env(b"app") && !names.takes_note(b"app"), "{condition}");
        }
    }

    #[test]
    fn who_asks_for_the_user_is_not_told_by_a_worker() {
        for (condition, claim) in [
            ("\"expr=%{REMOTE_USER} != 'monitor'\"", Claim::User),
            ("expr=%{remote_user}!='monitor'", Claim::User),
            ("\"expr=%{AUTH_TYPE} == 'Basic'\"", Claim::AuthType),
            ("\"expr=%{HANDLER} != 'x'\"", Claim::Handler),
            ("\"expr=-f %{REQUEST_FILENAME}\"", Claim::FileName),
            ("\"expr=%{SCRIPT_FILENAME} =~ /x/\"", Claim::FileName),
        ] {
            let names = learnt(&format!("logs/a common {condition}"));
            assert!(!names.takes(claim), "{condition}");
            let all = [Claim::User, Claim::AuthType, Claim::Handler, Claim::FileName];
            assert_eq!(all.iter().filter(|claim| !names.takes(**claim)).count(), 1, "{condition}");
        }
    }

    #[test]
    fn a_message_of_mod_log_debug_has_a_condition_too() {
        let mut names = learnt(r#"logs/a "%{quiet}e %{shown}e""#);
        names.learn(b"LogMessage", br#""%{reqenv:shown}" hook=log_transaction "reqenv('quiet') == ''""#);
        assert!(!names.takes_env(b"quiet") && names.takes_env(b"shown"));
    }

    #[test]
    fn a_format_is_no_condition() {
        let names = learnt(r#""logs/expr= x" "%{app}e expr=%{app}e env=!app %{REMOTE_USER}x""#);
        assert!(names.takes_env(b"app") && names.takes(Claim::User));
    }

    #[test]
    fn words_are_split_as_httpd_splits_them() {
        let split = |text: &str| {
            let words = words(text.as_bytes()).into_iter();
            words.map(|word| String::from_utf8(word).expect("text")).collect::<Vec<_>>()
        };
        assert_eq!(split(r#" a  "b c" 'd "e' f"#), ["a", "b c", "d \"e", "f"]);
        assert_eq!(split(r#""a \"b\" \\ \x" c"#), ["a \"b\" \\ \\x", "c"]);
        assert_eq!(split(r#""open"#), ["open"]);
        assert_eq!(split(""), [""; 0]);
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
