// SPDX-License-Identifier: MIT
//! Has bindgen(1) read gmem.h, and tells src/ which vm-memory Cargo has chosen.

use std::path::Path;
use std::process::Command;
use std::{env, fs};

fn run(program: &str, arguments: &[&str]) -> String {
    let output = match Command::new(program).args(arguments).output() {
        Ok(output) => output,
        Err(error) => panic!("{program}: {error}"),
    };
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        panic!("{program} {}: {said}", arguments.join(" "));
    }
    String::from_utf8(output.stdout).unwrap()
}

/// The minor version of the vm-memory in the Cargo.lock of whoever builds us. Cargo does not say
/// where that is: above the target directory, or above the one that Cargo was called in.
fn vm_memory(out_dir: &str) -> u32 {
    let called_in = env::var("PWD").unwrap_or_default();
    let above = Path::new(out_dir).ancestors().chain(Path::new(&called_in).ancestors());
    let mut locks = above.filter_map(|dir| fs::read_to_string(dir.join("Cargo.lock")).ok());
    let lock = locks.next().expect("no Cargo.lock above the target directory");

    let mut lines = lock.lines();
    lines.find(|line| *line == "name = \"vm-memory\"");
    let version = lines.next().unwrap_or_default();
    let minor = version.strip_prefix("version = \"0.");
    let minor = minor.and_then(|rest| rest.split('.').next()?.parse().ok());
    minor.unwrap_or_else(|| panic!("Cargo.lock has no vm-memory 0.x: {version}"))
}

fn main() {
    let out_dir = env::var("OUT_DIR").unwrap();
    let include = run("pkg-config", &["--cflags", "libgmem"]);
    let libraries = run("pkg-config", &["--libs", "libgmem"]);
    let header = run("pkg-config", &["--variable=includedir", "libgmem"]);
    println!("cargo:rerun-if-changed={}/gmem.h", header.trim());
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-env-changed=PKG_CONFIG_PATH");

    let all_of_it = format!("{out_dir}/all.h");
    fs::write(&all_of_it, "#include <gmem.h>\n").unwrap();
    let bindings = format!("{out_dir}/sys.rs");
    let mut arguments =
        vec!["--no-prepend-enum-name", "--with-derive-default", "--no-doc-comments"];
    arguments.extend(["--output", &*bindings, "--allowlist-function", "gmem_.*"]);
    arguments.extend(["--allowlist-type", "gmem_.*", "--allowlist-var", "GMEM_.*"]);
    // The header's inline functions are functions of the library, too.
    arguments.extend([&*all_of_it, "--", "-DGMEM_INLINE=GMEM_API"]);
    arguments.extend(include.split_whitespace());
    run("bindgen", &arguments);

    for flag in libraries.split_whitespace() {
        if let Some(dir) = flag.strip_prefix("-L") {
            println!("cargo:rustc-link-search=native={dir}");
        } else if let Some(name) = flag.strip_prefix("-l") {
            println!("cargo:rustc-link-lib={name}");
        }
    }

    let minor = vm_memory(&out_dir);
    if minor < 16 {
        println!("cargo:rustc-cfg=vm_memory_before_0_16");
    }
    if minor < 17 {
        println!("cargo:rustc-cfg=vm_memory_before_0_17");
    }
    if minor < 18 {
        println!("cargo:rustc-cfg=vm_memory_before_0_18");
    }
}
