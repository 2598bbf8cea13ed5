//! Commands as they are sent.

use deadpool_redis::redis::aio::MultiplexedConnection;
use deadpool_redis::redis::{Cmd, Pipeline, RedisError, Value};

/// A Lua script; one `static` each.
#[derive(Debug)]
pub struct Script {
    /// Name in metrics; no two scripts share one.
    pub name: &'static str,
    /// Source text.
    pub source: &'static str,
}

/// Sends `command` to a server that is about to have its keys.
pub(super) async fn ask(connection: &mut MultiplexedConnection, command: &Cmd) -> Result<Value, RedisError> {
    let mut both = Pipeline::with_capacity(2);
    both.cmd("ASKING").add_command(command.clone());
    Ok(connection.send_packed_commands(&both, 1, 1).await?.pop().unwrap_or(Value::Nil))
}

/// A script's call, by its text or by its SHA-1.
pub(super) fn invocation(verb: &str, script: &str, keys: &[&[u8]], args: &[&[u8]]) -> Cmd {
    let size = keys.iter().chain(args).map(|part| part.len()).sum::<usize>();
    let mut command = Cmd::with_capacity(3 + keys.len() + args.len(), verb.len() + script.len() + 8 + size);
    command.arg(verb).arg(script).arg(keys.len());
    for part in keys.iter().chain(args) {
        command.arg(*part);
    }
    command
}
