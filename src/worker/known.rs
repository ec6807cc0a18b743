//! Variables of a script's environment that say nothing the frontend does not know.
//!
//! Runs in: worker.  Trusts: nothing.  Owns: the names.  Never: hides what an application has set.

/// Variables that `ap_add_common_vars` and `ap_add_cgi_vars` make of the request: the frontend has the request.
const CGI_NAMES: [&[u8]; 31] = [
    b"AUTH_TYPE",
    b"CONTENT_LENGTH",
    b"CONTENT_TYPE",
    b"CONTEXT_DOCUMENT_ROOT",
    b"CONTEXT_PREFIX",
    b"DOCUMENT_ROOT",
    b"GATEWAY_INTERFACE",
    b"HTTPS",
    b"LD_LIBRARY_PATH",
    b"PATH",
    b"PATH_INFO",
    b"PATH_TRANSLATED",
    b"QUERY_STRING",
    b"REMOTE_ADDR",
    b"REMOTE_HOST",
    b"REMOTE_IDENT",
    b"REMOTE_PORT",
    b"REMOTE_USER",
    b"REQUEST_METHOD",
    b"REQUEST_SCHEME",
    b"REQUEST_URI",
    b"SCRIPT_FILENAME",
    b"SCRIPT_NAME",
    b"SCRIPT_URI",
    b"SCRIPT_URL",
    b"SERVER_ADDR",
    b"SERVER_ADMIN",
    b"SERVER_NAME",
    b"SERVER_PORT",
    b"SERVER_PROTOCOL",
    b"SERVER_SIGNATURE",
];
/// Not in the list above because of its length; the rest of such names begin alike.
const CGI_PREFIXES: [&[u8]; 4] = [b"HTTP_", b"SSL_", b"REDIRECT_", b"SERVER_SOFTWARE"];

/// Whether a variable says nothing that the frontend does not know.
pub fn is_known(name: &[u8]) -> bool {
    CGI_PREFIXES.iter().any(|p| name.starts_with(p)) || CGI_NAMES.binary_search(&name).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_names_are_sorted_for_the_search() {
        assert!(CGI_NAMES.is_sorted());
        assert!(is_known(b"SERVER_NAME") && is_known(b"HTTP_HOST") && is_known(b"AUTH_TYPE"));
        assert!(!is_known(b"APP_ENV") && !is_known(b"SERVER") && !is_known(b""));
    }
}
