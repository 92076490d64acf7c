import { pino, stdTimeFunctions, type DestinationStream, type Logger } from 'pino';

export type Log = Logger;
export type LogLevel = 'debug' | 'info' | 'warn' | 'error' | 'silent';

const SECRET_FIELDS = ['password', 'token', 'key', 'secret', 'verifier', 'authorization', 'query'];

/**
 * A structured log (JSON lines on standard error unless told otherwise). Fields whose name is a
 * secret's are redacted to two levels; nobody should log them in the first place.
 */
export function createLog(name: string, level: LogLevel, destination?: DestinationStream): Log {
  return pino(
    {
      name,
      level,
      base: { name, pid: process.pid },
      timestamp: stdTimeFunctions.isoTime,
      formatters: { level: (label) => ({ level: label }) },
      redact: {
        paths: SECRET_FIELDS.flatMap((field) => [field, `*.${field}`]),
        censor: '[redacted]',
      },
    },
    destination ?? pino.destination({ dest: 2, sync: true }),
  );
}
