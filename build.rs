//! Compiles the C shim and generates the bindings to httpd and APR, when the `httpd` feature asks for them.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    #[cfg(feature = "httpd")]
    host::build();
}

#[cfg(feature = "httpd")]
mod host {
    use std::{env, path::PathBuf, process::Command};

    /// What `apxs -q NAME` prints: the installed httpd's own answer.
    fn apxs(name: &str) -> String {
        let program = env::var("APXS").unwrap_or_else(|_| "apxs".into());
        let out = Command::new(&program)
            .args(["-q", name])
            .output()
            .unwrap_or_else(|e| panic!("cannot run {program} (install apache2-dev, or set APXS): {e}"));
        assert!(out.status.success(), "{program} -q {name} failed");
        String::from_utf8_lossy(&out.stdout).trim().to_owned()
    }

    /// Include and preprocessor flags of httpd's and APR's headers.
    fn header_flags() -> Vec<String> {
        let mut flags = vec![format!("-I{}", apxs("INCLUDEDIR"))];
        for name in ["APR_INCLUDEDIR", "APU_INCLUDEDIR"] {
            flags.push(format!("-I{}", apxs(name)));
        }
        flags.extend(apxs("EXTRA_CPPFLAGS").split_whitespace().map(str::to_owned));
        flags
    }

    pub fn build() {
        for input in ["c_shim/pool_shim.c", "c_shim/pool_shim.h", "c_shim/pool_commands.c", "c_shim/wrapper.h"] {
            println!("cargo:rerun-if-changed={input}");
        }
        println!("cargo:rerun-if-env-changed=APXS");
        let flags = header_flags();

        let mut shim = cc::Build::new();
        shim.files(["c_shim/pool_shim.c", "c_shim/pool_commands.c"]).warnings(true).flag("-Wno-unused-parameter");
        for flag in &flags {
            shim.flag(flag);
        }
        shim.compile("pool_shim");

        let out = PathBuf::from(env::var("OUT_DIR").expect("cargo sets OUT_DIR")).join("bindings.rs");
        bindgen::Builder::default()
            .header("c_shim/wrapper.h")
            .clang_args(&flags)
            .allowlist_file(".*/(httpd|http_[a-z]+|ap_[a-z]+|util_[a-z]+|scoreboard|mod_ssl_openssl|mod_[a-z]+|mpm_common|unixd|apr[a-z_]*|pool_shim)\\.h")
            .default_enum_style(bindgen::EnumVariation::Consts)
            .derive_debug(false)
            .layout_tests(false)
            .generate_comments(false)
            .generate()
            .expect("bindgen reads httpd's headers (install libclang-dev)")
            .write_to_file(out)
            .expect("OUT_DIR is writable");

        // httpd unloads modules between its configuration passes. Rust's thread locals and statics do not survive
        // that in a defined way, so the image stays mapped.
        println!("cargo:rustc-cdylib-link-arg=-Wl,-z,nodelete");
        // httpd loads modules RTLD_GLOBAL: without this, a second module file (LoadModule names another path at a reload)
        // would find its own `pool_module` in the first one, which stays.
        println!("cargo:rustc-cdylib-link-arg=-Wl,-Bsymbolic");
    }
}
