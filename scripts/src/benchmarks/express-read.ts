import { readFileSync } from 'node:fs';
import express from 'express';
import pg from 'pg';

/**
 * The baseline of `poll` and `cached-result`, a process of its own: bare Express routes, one with a
 * prepared SELECT and an ETag, one that sends bytes it holds. Tells its port to the parent and ends
 * with it.
 */
const pool = new pg.Pool({ connectionString: process.env['DATABASE_URL'], max: 20 });
const bytes = readFileSync(process.env['BENCH_BYTES'] ?? '/dev/null');
const app = express();
app.get('/requests/:id', async (req, res) => {
  const found = await pool.query<{ status: string; version: number }>({
    name: 'select',
    text: 'select id, status, version from requests where id = $1',
    values: [req.params.id],
  });
  const [row] = found.rows;
  res.set('ETag', `"${row?.version}"`);
  if (req.headers['if-none-match'] === `"${row?.version}"`) res.status(304).end();
  else res.json(row);
});
app.get('/result', (_req, res) => {
  res.type('application/json').send(bytes);
});
const server = app.listen(0, '127.0.0.1', () => {
  const address = server.address();
  process.send?.(typeof address === 'object' ? address?.port : undefined);
});
process.once('disconnect', () => process.exit());
