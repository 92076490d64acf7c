import { randomUUID } from 'node:crypto';
import express from 'express';
import pg from 'pg';

/**
 * The baseline of `submit`, a process of its own: a bare Express route with one prepared INSERT into a
 * table with a primary key. Tells its port to the parent and ends with it.
 */
const pool = new pg.Pool({ connectionString: process.env['DATABASE_URL'], max: 20 });
const app = express();
app.use(express.json());
app.post('/requests', async (req, res) => {
  const { dataset, query } = req.body as { dataset: string; query: object };
  const id = randomUUID();
  await pool.query({
    name: 'insert',
    text: 'insert into bench_inserts (id, dataset, query, created_at) values ($1, $2, $3, $4)',
    values: [id, dataset, JSON.stringify(query), new Date()],
  });
  res.status(202).json({ id });
});
const server = app.listen(0, '127.0.0.1', () => {
  const address = server.address();
  process.send?.(typeof address === 'object' ? address?.port : undefined);
});
process.once('disconnect', () => process.exit());
