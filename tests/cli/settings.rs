//! Configurations, help and completions.

use super::*;

#[test]
fn configurations() -> Try {
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("t.toml");
    let path = file.to_str().ok_or("path")?;
    std::fs::write(
        &file,
        "[storage_tiers.memory]\nmax_size = \"64MiB\"\n\n[storage_tiers.ssd]\nmax_sise = 1\n",
    )?;
    for what in ["show", "check"] {
        let ran = run(&["config", what, "--config", path]).with(2);
        assert!(ran.err.contains("t.toml:5:1") && ran.err.contains("max_size"), "{}", ran.err);
    }
    std::fs::write(&file, "[storage_tiers.memory]\nmax_size = \"64MiB\"\n")?;
    let shown = run(&["config", "show", "--config", path, "--ssd", "/x=1GiB"]).with(0).text();
    assert!(shown.contains("max_size = \"64MiB\"") && shown.contains("1GiB"), "{shown}");
    // What is shown can be read, and says the same.
    std::fs::write(&file, &shown)?;
    assert_eq!(run(&["config", "show", "--config", path]).with(0).text(), shown);
    let json = run(&["config", "show", "--json"]).with(0).json();
    assert_eq!(json["storage_tiers"]["memory"]["max_size"], "512MiB");
    assert!(run(&["config", "check", "--ssd", "/x=1MiB"]).with(2).err.contains("segments"));
    assert_eq!(run(&["config", "check", "--json"]).with(0).json()["valid"], true);
    std::fs::remove_file(&file)?;
    assert!(run(&["config", "check", "--config", path]).with(2).err.contains("t.toml"));
    Ok(())
}

#[test]
fn help_names_the_exit_codes_and_completions_the_commands() {
    let help = run(&["--help"]).with(0).text();
    assert!(help.contains("Exit codes") && help.contains("130  interrupted"), "{help}");
    for shell in ["bash", "zsh", "fish"] {
        let script = run(&["completions", shell]).with(0).text();
        assert!(["bench", "replay", "verify"].iter().all(|c| script.contains(c)), "{shell}");
    }
    assert_eq!(run(&["nonsense"]).code, Some(2));
}
