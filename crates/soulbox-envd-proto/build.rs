//! Compiles `proto/` into messages and service traits, without protoc. Does nothing unless feature `rpc` is on.

#[cfg(feature = "rpc")]
fn main() {
    use std::path::PathBuf;

    const FILES: [&str; 2] = ["process/process.proto", "filesystem/filesystem.proto"];
    let manifest_dir = PathBuf::from(
        std::env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets CARGO_MANIFEST_DIR"),
    );
    let out_dir = PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let proto = manifest_dir.join("../../proto");
    for file in FILES {
        println!("cargo:rerun-if-changed={}", proto.join(file).display());
    }

    let mut compiler = protox::Compiler::new([&proto]).expect("proto/ exists");
    compiler.include_imports(true).include_source_info(true);
    compiler
        .open_files(FILES)
        .unwrap_or_else(|error| panic!("{error:?}"));
    let descriptors = out_dir.join("descriptors.bin");
    std::fs::write(&descriptors, compiler.encode_file_descriptor_set())
        .expect("OUT_DIR is writable");

    // Comments would make up most of what every sandbox carries.
    let mut published = protox::Compiler::new([&proto]).expect("proto/ exists");
    published.include_imports(true).include_source_info(false);
    published
        .open_files(FILES)
        .unwrap_or_else(|error| panic!("{error:?}"));
    std::fs::write(
        out_dir.join("published.bin"),
        published.encode_file_descriptor_set(),
    )
    .expect("OUT_DIR is writable");

    let mut config = connectrpc_build::CodeGenConfig::default();
    config.generate_json = true;
    config.preserve_unknown_fields = false;
    config.unboxed_oneof_fields = vec![".".into()];
    connectrpc_build::Config::new()
        .buffa_config(config)
        .descriptor_set(&descriptors)
        .files(&FILES)
        .gate_client_feature(true)
        .emit_rerun_directives(false)
        .include_file("envd_rpc.rs")
        .compile()
        .expect("proto/ compiles");
}

#[cfg(not(feature = "rpc"))]
fn main() {}
