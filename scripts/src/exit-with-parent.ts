/**
 * Preloaded into supervised processes: when the supervisor is gone, however it went, the channel to
 * it closes, and the process drains as on any other SIGTERM.
 */
process.once('disconnect', () => process.kill(process.pid, 'SIGTERM'));
// The channel alone must not keep a process alive.
process.channel?.unref();
