//! Shell completions and the man page, from the definition of the command line.

use std::fmt::Write as _;
use std::io::{self, Write};

use clap_complete::Shell;
use clap_mangen::Man;

use crate::args::{AFTER_HELP, Generate, command, version};

/// The two commands, for the man page: clap's own synopsis repeats every option.
const SYNOPSIS: &str = "\
.SH SYNOPSIS
.B allout
.RI [ OPTIONS ]
.br
.B allout healthcheck
.RI [ URL ]
";

/// Variables that the program reads, for the man page. The options name theirs.
const ENVIRONMENT: &str = "\
Each option is also a variable, named beside it: \\-\\-drain\\-delay is ALLOUT_DRAIN_DELAY. A flag overrides its variable.
.TP
.B RUST_LOG
What is logged; see LOG LEVELS.
";

/// Files that the program reads, for the man page.
const FILES: &str = "\
.TP
.I /etc/default/allout
Options for the systemd unit, as variables: a line each, such as ALLOUT_GRACE=10s. Read by the program
(\\-\\-env\\-file) at each start and reload.
OpenRC reads /etc/conf.d/allout, procd /etc/allout.env.
.TP
.I /usr/lib/systemd/system/allout.service, allout.socket
The units of a package; those of /etc/systemd/system come first.
.TP
.I /proc/self, /sys/fs/cgroup
Limits on descriptors, threads and memory. Without them the defaults hold.
";

/// Title of the section on `RUST_LOG`: options have a heading "Logging" of their own.
const LOG_LEVELS: &str = "LOG LEVELS";

/// Writes shell completions or the man page.
///
/// # Errors
///
/// Result of `out`.
pub fn generate(what: Generate, out: &mut dyn Write) -> io::Result<()> {
    let mut plain = plain_command();
    // In memory: clap_complete panics if its writer fails.
    let mut text = Vec::new();
    let mut complete = |shell| clap_complete::generate(shell, &mut plain, "allout", &mut text);
    match what {
        Generate::Bash => complete(Shell::Bash),
        Generate::Zsh => complete(Shell::Zsh),
        Generate::Fish => complete(Shell::Fish),
        Generate::Man => write_man(&mut text)?,
    }
    out.write_all(&text)
}

/// The command line of the plain binary, which has no `--generate`: clap cannot remove an option.
fn plain_command() -> clap::Command {
    let full = command();
    clap::Command::new("allout")
        .about(full.get_about().cloned().unwrap_or_default())
        .version(version())
        .after_help(AFTER_HELP)
        .disable_help_flag(true)
        .disable_version_flag(true)
        .args(full.get_arguments().filter(|arg| arg.get_id() != "generate"))
}

/// The sections of man-pages(7): those of clap, and the paragraphs that the help ends with.
fn write_man(out: &mut Vec<u8>) -> io::Result<()> {
    let command = plain_command();
    let man = Man::new(command);
    man.render_title(out)?;
    man.render_name_section(out)?;
    out.write_all(SYNOPSIS.as_bytes())?;
    man.render_description_section(out)?;
    let mut options = Vec::new();
    man.render_options_section(&mut options)?;
    let options = String::from_utf8_lossy(&options).replace(".SH ", ".SS ");
    write!(out, ".SH OPTIONS\n{options}")?;
    let (notes, mut rest) = (sections(AFTER_HELP), String::new());
    for name in ["Endpoints", "Signals", "Exit codes", "Logging", "Examples"] {
        if let Some((_, roff)) = notes.iter().find(|(title, _)| title == name) {
            let title = match name {
                "Exit codes" => "EXIT STATUS".to_owned(),
                "Logging" => LOG_LEVELS.to_owned(),
                _ => name.to_uppercase(),
            };
            let _ = write!(rest, ".SH {title}\n{roff}");
        }
        if name == "Exit codes" {
            let _ = write!(rest, ".SH ENVIRONMENT\n{ENVIRONMENT}.SH FILES\n{FILES}");
        }
    }
    out.write_all(rest.as_bytes())?;
    man.render_version_section(out)
}

/// `Title:` and the indented lines below it, as roff: a line with two columns becomes a tagged paragraph.
fn sections(text: &str) -> Vec<(String, String)> {
    let mut sections: Vec<(String, String)> = Vec::new();
    for line in text.lines() {
        if let Some(title) = line.strip_suffix(':').filter(|title| !title.starts_with(' ')) {
            sections.push((title.to_owned(), String::new()));
            continue;
        }
        let Some((title, roff)) = sections.last_mut() else { continue };
        if title == "Examples" {
            let _ = write!(roff, ".EX\n{}\n.EE\n", escape(line.strip_prefix("  ").unwrap_or(line)));
            continue;
        }
        let line = line.trim();
        let _ = match line.split_once("  ") {
            Some((tag, body)) => writeln!(roff, ".TP\n.B {}\n{}", escape(tag), escape(body.trim())),
            None if line.is_empty() => Ok(()),
            None => writeln!(roff, "{}", escape(line)),
        };
    }
    sections
}

/// As roff takes it for plain text.
fn escape(text: &str) -> String {
    let text = text.replace('\\', "\\e").replace('-', "\\-").replace('\'', "\\(aq");
    if text.starts_with('.') { format!("\\&{text}") } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_man_page_has_the_sections_that_an_operator_looks_for() {
        let mut text = Vec::new();
        generate(Generate::Man, &mut text).unwrap();
        let text = String::from_utf8(text).unwrap();
        for section in ["NAME", "SYNOPSIS", "OPTIONS", "SIGNALS", "EXIT STATUS", "ENVIRONMENT", "FILES", "EXAMPLES"] {
            assert!(text.lines().any(|line| line.trim_matches('"') == format!(".SH {section}")), "{section}: {text}");
        }
        let has = |piece: &str| assert!(text.contains(piece), "{piece}: {text}");
        has(".TP\n.B 3\nthe grace period ran out");
        has("ALLOUT_GRACE");
        assert!(!text.contains("generate"), "the plain binary has no such option");
    }
}
