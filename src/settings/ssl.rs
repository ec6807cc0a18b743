//! What mod_ssl's per-directory directives said, recorded beside mod_ssl's own copy, which no other module can read.
//!
//! Runs in: wherever the configuration is read, and at request time for `.htaccess`.  Trusts: nothing.
//! Owns: a copy.  Never: rejects a value; that is mod_ssl's to do.

/// The `SSLOptions` of one directory that matter to a pool's request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SslOptions {
    pub std_env_vars: bool,
    pub export_cert_data: bool,
    pub fake_basic_auth: bool,
    pub strict_require: bool,
    /// `SSLRequireSSL` or `SSLRequire` is in force.
    pub ssl_require: bool,
    /// `SSLRequire`, an expression over the TLS session, is in force.
    pub ssl_expression: bool,
    /// `SSLVerifyClient`, `SSLVerifyDepth` or `SSLCipherSuite` was given for a directory or Location: mod_ssl may have
    /// to renegotiate.
    pub ssl_verify_in_dir: bool,
    /// Which demands on the TLS session these are: the same number, the same directives in the same order; 0 for none.
    pub demands: u64,
}

const STD_ENV_VARS: u8 = 1 << 0;
const EXPORT_CERT_DATA: u8 = 1 << 1;
const FAKE_BASIC_AUTH: u8 = 1 << 2;
const STRICT_REQUIRE: u8 = 1 << 3;
/// `OptRenegotiate` and `LegacyDNStringFormat`: of no use here, but they take part in the order of things.
const OTHER: u8 = 0;
/// mod_ssl's `SSL_OPT_RELSET`: only `+` and `-` were used so far.
const RELATIVE: u8 = 1 << 7;

/// FNV-1a.
const BASIS: u64 = 0xcbf2_9ce4_8422_2325;

fn step(hash: u64, byte: u8) -> u64 {
    (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
}

/// The number of two lists of demands, one behind the other.
fn both(outer: u64, inner: u64) -> u64 {
    match (outer, inner) {
        (0, one) | (one, 0) => one,
        (outer, inner) => inner.to_be_bytes().iter().fold(outer, |hash, byte| step(hash, *byte)) | 1,
    }
}

/// One directory's record, with the merge of `ssl_config_perdir_merge` (ssl_engine_config.c).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SslDirRecord {
    options: u8,
    add: u8,
    del: u8,
    require: bool,
    expression: bool,
    verify: bool,
    demands: u64,
}

impl Default for SslDirRecord {
    fn default() -> Self {
        SslDirRecord { options: RELATIVE, add: 0, del: 0, require: false, expression: false, verify: false, demands: 0 }
    }
}

impl SslDirRecord {
    /// `SSLOptions`, as `ssl_cmd_SSLOptions` does it: of several words without sign only the last one counts.
    pub fn options<'a>(&mut self, words: impl Iterator<Item = &'a str>) {
        let mut first = true;
        for word in words {
            let (sign, name) = match word.as_bytes().first() {
                Some(b'+' | b'-') => word.split_at(1),
                _ => ("", word),
            };
            if sign.is_empty() && first {
                self.options = 0;
                first = false;
            }
            let bit = match name {
                "StdEnvVars" => STD_ENV_VARS,
                "ExportCertData" => EXPORT_CERT_DATA,
                "FakeBasicAuth" => FAKE_BASIC_AUTH,
                "StrictRequire" => STRICT_REQUIRE,
                "OptRenegotiate" | "LegacyDNStringFormat" => OTHER,
                // mod_ssl's handler refuses it.
                _ => return,
            };
            match sign {
                "-" => {
                    self.add &= !bit;
                    self.del |= bit;
                    self.options &= !bit;
                }
                "+" => {
                    self.add |= bit;
                    self.del &= !bit;
                    self.options |= bit;
                }
                _ => {
                    self.options = bit;
                    self.add = bit;
                    self.del = 0;
                }
            }
        }
    }

    /// `SSLRequireSSL`, `SSLRequire`.
    pub fn require(&mut self) {
        self.require = true;
    }

    /// `SSLRequire`.
    pub fn require_expression(&mut self, arguments: &[u8]) {
        self.require = true;
        self.expression = true;
        self.demand(b"SSLRequire", arguments);
    }

    /// `SSLVerifyClient`, `SSLVerifyDepth`, `SSLCipherSuite` in a directory or Location.
    pub fn verify(&mut self, directive: &[u8], arguments: &[u8]) {
        self.verify = true;
        self.demand(&directive.to_ascii_lowercase(), arguments);
    }

    fn demand(&mut self, directive: &[u8], arguments: &[u8]) {
        let text = [directive, b" ", arguments].concat();
        self.demands = both(self.demands, text.iter().fold(BASIS, |hash, byte| step(hash, *byte)) | 1);
    }

    /// What holds where `inner` is merged over `self`.
    pub fn merged(self, inner: SslDirRecord) -> SslDirRecord {
        let mut merged = inner;
        if inner.options & RELATIVE != 0 {
            merged.add = (self.add & !inner.del) | inner.add;
            merged.del = (self.del & !inner.add) | inner.del;
            merged.options = (self.options & !merged.del) | merged.add;
        }
        merged.require |= self.require;
        merged.expression |= self.expression;
        merged.verify |= self.verify;
        merged.demands = both(self.demands, inner.demands);
        merged
    }

    pub fn effective(self) -> SslOptions {
        let has = |bit| self.options & bit != 0;
        SslOptions {
            std_env_vars: has(STD_ENV_VARS),
            export_cert_data: has(EXPORT_CERT_DATA),
            fake_basic_auth: has(FAKE_BASIC_AUTH),
            strict_require: has(STRICT_REQUIRE),
            ssl_require: self.require,
            ssl_expression: self.expression,
            ssl_verify_in_dir: self.verify,
            demands: self.demands,
        }
    }
}
