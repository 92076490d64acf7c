import { createServer } from 'node:net';

/** A port of 127.0.0.1 that is free at this moment: the wanted one if it is, else any. */
export async function freePort(wanted?: number): Promise<number> {
  const server = createServer();
  const port = await new Promise<number | undefined>((done) => {
    server.once('error', () => done(undefined));
    server.listen(wanted ?? 0, '127.0.0.1', () => {
      const address = server.address();
      done(typeof address === 'object' ? address?.port : undefined);
    });
  });
  await new Promise((done) => server.close(done));
  return port ?? freePort();
}
