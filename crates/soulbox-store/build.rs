//! The migrations are compiled in: a new file has to lead to a new build.

fn main() {
    println!("cargo::rerun-if-changed=migrations");
}
