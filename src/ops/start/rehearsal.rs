//! Finds out whether the account that will run the server reads what recovery needs. Root reads everything, and a server
//! that can't fetch its WAL tells of it in its log alone, and tries again for as long as it is let.

use std::ffi::OsString;
use std::path::Path;
use std::process::Stdio;

use super::{Start, StartError, as_account};

/// Usage and out of reach: what access that is refused ends with. Anything else is not about the account.
const REFUSED: [i32; 2] = [2, 5];
/// What `setpriv` ends with where the account may not run the program.
const NOT_RUN: [i32; 2] = [126, 127];

impl Start {
    /// Runs `program` with these arguments as the account that the files are given to, if there is one. It is meant to read
    /// what the server's `restore_command` will, and has succeeded for us.
    ///
    /// # Errors
    /// The account is refused.
    pub fn rehearse(&self, program: &Path, arguments: &[OsString]) -> Result<(), StartError> {
        let Some(account) = &self.account else {
            return Ok(());
        };
        let refused = |why: String| StartError::Unreadable {
            account: account.name.clone(),
            why,
        };
        let mut command = as_account(program, account);
        // It may not enter where we are.
        command.args(arguments).current_dir("/").stdin(Stdio::null());
        let answer = command
            .output()
            .map_err(|error| refused(format!("{} can't be run: {error}", program.display())))?;
        let code = answer.status.code();
        let said = String::from_utf8_lossy(&answer.stderr);
        if code.is_some_and(|code| NOT_RUN.contains(&code)) {
            return Err(refused(format!("{} can't be run: {}", program.display(), said.trim())));
        }
        match code.is_some_and(|code| REFUSED.contains(&code)) {
            true => Err(refused(reason(&said))),
            false => Ok(()),
        }
    }
}

/// The line that says what went wrong, without who says it.
fn reason(said: &str) -> String {
    let mark = ": error: ";
    let line = said
        .lines()
        .find_map(|line| Some(line.split_once(mark)?.1))
        .or(said.lines().last());
    line.unwrap_or("it does not say why").to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reason_is_the_error_and_not_what_was_warned_of_before() {
        let said = "pgp-pitr: warning: a\npgp-pitr: error: no repository at /x\npgp-pitr: hint: mounted?\n";
        assert_eq!(reason(said), "no repository at /x");
        assert_eq!(reason("something else\n"), "something else");
        assert_eq!(reason(""), "it does not say why");
    }
}
