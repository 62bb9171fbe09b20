//! A Dockerfile becomes the steps of a build. A function of the text: no file is looked at.
//!
//! Servers never see a Dockerfile. What a step cannot say is refused, with its line, where the result would be another; what only makes builds
//! faster or tells others something is passed over with a warning.

mod words;

use std::collections::BTreeMap;

use parse_dockerfile::{Command, Flag, HereDoc, Instruction, Source, Span};

use words::{joined, pairs, quoted};

/// The user and folder of a template whose Dockerfile sets none.
const USER: &str = "user";
const WORKDIR: &str = "/home/user";

/// Ends a here-document that is handed on.
const END: &str = "END_OF_HERE_DOCUMENT";

/// What is wrong in a Dockerfile.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {message}")]
pub struct DockerfileError {
    /// Counts from 1.
    pub line: usize,
    pub message: String,
}

/// What a Dockerfile says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Recipe {
    pub image: String,
    pub steps: Vec<Step>,
    /// Of ENTRYPOINT and CMD.
    pub start: Option<String>,
    /// What was passed over.
    pub warnings: Vec<String>,
}

/// A step in the words of the API.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    pub kind: &'static str,
    /// Of a COPY, the first is what is copied, relative to the folder.
    pub args: Vec<String>,
}

impl Step {
    pub(crate) fn new<const N: usize>(kind: &'static str, args: [&str; N]) -> Self {
        let args = args.map(str::to_owned).to_vec();
        Self { kind, args }
    }
}

/// A Dockerfile that is being read.
struct Reader<'a> {
    text: &'a str,
    escape: char,
    recipe: Recipe,
    /// Of ARGs before FROM.
    global: BTreeMap<String, String>,
    user: Option<String>,
    has_workdir: bool,
    entrypoint: Option<String>,
    entrypoint_is_shell: bool,
    command: Option<String>,
}

impl Recipe {
    /// Reads the text of a Dockerfile.
    ///
    /// # Errors
    /// The first thing that is wrong or cannot be said by steps.
    pub fn read(text: &str) -> Result<Self, DockerfileError> {
        let file = parse_dockerfile::parse(text).map_err(|error| {
            let said = error.to_string();
            DockerfileError {
                line: error.line(),
                message: said.split(" at line ").next().unwrap_or(&said).to_owned(),
            }
        })?;
        let mut reader = Reader {
            text,
            escape: file
                .parser_directives
                .escape
                .as_ref()
                .map_or('\\', |it| it.value.value),
            recipe: Self::default(),
            global: BTreeMap::new(),
            user: None,
            has_workdir: false,
            entrypoint: None,
            entrypoint_is_shell: false,
            command: None,
        };
        for instruction in &file.instructions {
            reader.instruction(instruction)?;
        }
        Ok(reader.finish())
    }
}

impl Reader<'_> {
    fn instruction(&mut self, instruction: &Instruction<'_>) -> Result<(), DockerfileError> {
        match instruction {
            Instruction::From(it) => {
                if !self.recipe.image.is_empty() {
                    let message = "a second FROM: builds of more than one stage are not supported";
                    return Err(self.error(&it.from.span, message));
                }
                for flag in &it.options {
                    self.pass_over(&it.from.span, &format!("FROM --{}", flag.name.value));
                }
                self.recipe.image = words::expanded(&it.image.value, &self.global);
                if self.recipe.image.is_empty() {
                    return Err(self.error(&it.from.span, "FROM names no image"));
                }
                self.step(Step::new("USER", ["root"]));
                self.step(Step::new("WORKDIR", ["/"]));
            }
            Instruction::Arg(it) => {
                for (name, value) in self.pairs(&it.arg.span, &it.arguments.value, true)? {
                    if self.recipe.image.is_empty() {
                        let value = words::expanded(&value.unwrap_or_default(), &self.global);
                        self.global.insert(name, value);
                        continue;
                    }
                    // Declared once more, one from before FROM keeps its value.
                    let value = value.or_else(|| self.global.get(&name).cloned());
                    self.step(Step::new("ARG", [&name, &value.unwrap_or_default()]));
                }
            }
            Instruction::Env(it) => {
                let pairs = self.pairs(&it.env.span, &it.arguments.value, false)?;
                let args = pairs
                    .into_iter()
                    .flat_map(|(name, value)| [name, value.unwrap_or_default()]);
                let args = args.collect();
                self.step(Step { kind: "ENV", args });
            }
            Instruction::Run(it) => {
                self.run_options(&it.run.span, &it.options)?;
                let command = match &it.arguments {
                    Command::Exec(words) => exec(words.value.iter().map(|it| &*it.value)),
                    Command::Shell(text) => self.shell(&it.run.span, text.value, &it.here_docs)?,
                    _ => return Err(self.error(&it.run.span, "this form of RUN is not known")),
                };
                self.step(Step::new("RUN", [&command]));
            }
            Instruction::Copy(it) => {
                self.copy(&it.copy.span, &it.options, &it.src, &it.dest.value)?
            }
            Instruction::Add(it) => {
                self.copy(&it.add.span, &it.options, &it.src, &it.dest.value)?
            }
            Instruction::Workdir(it) => {
                self.has_workdir = true;
                let folder = words::unquoted(&it.arguments.value);
                self.step(Step::new("WORKDIR", [&folder]));
            }
            Instruction::User(it) => {
                let user = words::unquoted(&it.arguments.value);
                self.step(Step::new("USER", [&user]));
                self.user = Some(user);
            }
            Instruction::Cmd(it) => self.command = Some(self.starts(&it.arguments)),
            Instruction::Entrypoint(it) => {
                self.entrypoint = Some(self.starts(&it.arguments));
                self.entrypoint_is_shell = matches!(it.arguments, Command::Shell(_));
            }
            Instruction::Healthcheck(it) => self.pass_over(&it.healthcheck.span, "HEALTHCHECK"),
            Instruction::Shell(it) => self.pass_over(&it.shell.span, "SHELL"),
            Instruction::Onbuild(it) => self.pass_over(&it.onbuild.span, "ONBUILD"),
            Instruction::Stopsignal(it) => self.pass_over(&it.stopsignal.span, "STOPSIGNAL"),
            // They say nothing about the files or programs of a template.
            Instruction::Expose(_)
            | Instruction::Label(_)
            | Instruction::Maintainer(_)
            | Instruction::Volume(_) => {}
            // A later version of the parser may know more.
            _ => {
                return Err(self.error(&(0..0), "an instruction of the file is not known"));
            }
        }
        Ok(())
    }

    fn finish(mut self) -> Recipe {
        if self.user.is_none() {
            self.step(Step::new("USER", [USER]));
        }
        if !self.has_workdir {
            self.step(Step::new("WORKDIR", [WORKDIR]));
        }
        self.recipe.start = match (self.entrypoint, self.command) {
            // One of a shell takes no arguments.
            (Some(entry), Some(arguments)) if !self.entrypoint_is_shell => {
                Some(format!("{entry} {arguments}"))
            }
            (entry, command) => entry.or(command),
        };
        self.recipe
    }

    fn copy(
        &mut self,
        span: &Span,
        options: &[Flag<'_>],
        sources: &[Source<'_>],
        destination: &str,
    ) -> Result<(), DockerfileError> {
        let (mut owner, mut mode) = (String::new(), String::new());
        for flag in options {
            let value = flag.value.as_ref().map_or("", |it| &*it.value);
            match &*flag.name.value {
                "chown" => owner = value.to_owned(),
                "chmod"
                    if !value.is_empty() && value.bytes().all(|it| matches!(it, b'0'..=b'7')) =>
                {
                    mode = value.to_owned();
                }
                "chmod" => {
                    let message = format!("--chmod={value}: only octal modes are supported");
                    return Err(self.error(span, &message));
                }
                "link" => self.pass_over(span, "COPY --link"),
                other => {
                    let message = format!("COPY --{other} is not supported");
                    return Err(self.error(span, &message));
                }
            }
        }
        let destination = words::unquoted(destination);
        for source in sources {
            match source {
                Source::Path(path) => {
                    let path = words::unquoted(&path.value);
                    if path.contains("://") || path.starts_with("git@") {
                        let message = format!("`{path}` is not in the folder; fetch it with RUN");
                        return Err(self.error(span, &message));
                    }
                    // The folder is the root of what can be copied.
                    let path = path.trim_start_matches('/');
                    let path = if path.is_empty() { "." } else { path };
                    self.step(Step::new("COPY", [path, &destination, &owner, &mode]));
                }
                Source::HereDoc(text) => {
                    if destination.ends_with('/') {
                        let message = "a here-document needs the name of a file to go to";
                        return Err(self.error(span, message));
                    }
                    let user = self.user.as_deref().unwrap_or("root");
                    let owner = if owner.is_empty() { user } else { &owner };
                    let written = write_file(&text.value, &destination, owner, &mode);
                    self.step(Step::new("RUN", [&written, "root"]));
                }
                _ => return Err(self.error(span, "this form of COPY is not known")),
            }
        }
        Ok(())
    }

    fn run_options(&mut self, span: &Span, options: &[Flag<'_>]) -> Result<(), DockerfileError> {
        for flag in options {
            let value = flag.value.as_ref().map_or("", |it| &*it.value);
            let kind = value.split(',').find_map(|it| it.strip_prefix("type="));
            match (&*flag.name.value, kind) {
                // What it would keep for the next build is a gift.
                ("mount", Some("cache" | "tmpfs")) => {
                    self.pass_over(span, &format!("RUN --mount={value}"));
                }
                (name, _) => {
                    let message = format!("RUN --{name}={value} is not supported");
                    return Err(self.error(span, &message));
                }
            }
        }
        Ok(())
    }

    /// The text for a shell of a RUN in shell form. A here-document at its begin is read by what follows it, or is the script itself.
    fn shell(
        &self,
        span: &Span,
        text: &str,
        documents: &[HereDoc<'_>],
    ) -> Result<String, DockerfileError> {
        let command = joined(text, self.escape);
        match documents {
            [] => Ok(command),
            [document] if !command.is_empty() => {
                let word = match document.expand {
                    true => END.to_owned(),
                    false => format!("'{END}'"),
                };
                Ok(format!(
                    "{command} <<{word}\n{}{END}",
                    ended(&document.value)
                ))
            }
            // Another program than a shell reads it, so it has to be a file.
            [document] if document.value.starts_with("#!") => Ok(format!(
                "script=$(mktemp) && printf %s {} >\"$script\" && chmod 755 \"$script\" && \"$script\"; code=$?; rm -f \"$script\"; exit $code",
                quoted(&document.value)
            )),
            [document] => Ok(document.value.clone().into_owned()),
            _ => Err(self.error(span, "more than one here-document in a RUN")),
        }
    }

    /// The text for a shell of CMD and ENTRYPOINT.
    fn starts(&self, command: &Command<'_>) -> String {
        match command {
            Command::Exec(words) => exec(words.value.iter().map(|it| &*it.value)),
            Command::Shell(text) => joined(text.value, self.escape),
            // The parser has no third form; one of a later version is no start command.
            _ => String::new(),
        }
    }

    fn pairs(
        &self,
        span: &Span,
        text: &str,
        is_arg: bool,
    ) -> Result<Vec<(String, Option<String>)>, DockerfileError> {
        pairs(text, is_arg).map_err(|message| self.error(span, &message))
    }

    fn step(&mut self, step: Step) {
        self.recipe.steps.push(step);
    }

    fn pass_over(&mut self, span: &Span, what: &str) {
        let line = self.line(span);
        self.recipe
            .warnings
            .push(format!("line {line}: {what} is passed over"));
    }

    fn error(&self, span: &Span, message: &str) -> DockerfileError {
        DockerfileError {
            line: self.line(span),
            message: message.to_owned(),
        }
    }

    fn line(&self, span: &Span) -> usize {
        let before = self.text.get(..span.start).unwrap_or_default();
        before.matches('\n').count() + 1
    }
}

/// The words of an exec form for a shell.
fn exec<'a>(words: impl Iterator<Item = &'a str>) -> String {
    let quoted: Vec<_> = words.map(quoted).collect();
    quoted.join(" ")
}

/// A command that writes a file, as root.
fn write_file(text: &str, destination: &str, owner: &str, mode: &str) -> String {
    let (to, owner_group) = (
        quoted(destination),
        match owner.contains(':') {
            true => owner.to_owned(),
            false => format!("{owner}:{owner}"),
        },
    );
    let mode = if mode.is_empty() { "644" } else { mode };
    format!(
        "mkdir -p -- \"$(dirname -- {to})\" && printf %s {} >{to} && chmod {mode} -- {to} && chown {} -- {to}",
        quoted(text),
        quoted(&owner_group)
    )
}

fn ended(text: &str) -> String {
    if text.is_empty() || text.ends_with('\n') {
        return text.to_owned();
    }
    format!("{text}\n")
}

#[cfg(test)]
mod tests;
