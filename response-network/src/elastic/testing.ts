import { randomBytes } from 'node:crypto';
import { Client } from '@elastic/elasticsearch';

export type TestIndex = { name: string; remove(): Promise<void> };

/** An index of its own with these documents; for tests only. Documents are JSON texts. */
export async function makeTestIndex(
  url: string,
  properties: Record<string, { type: string }>,
  documents: string[],
): Promise<TestIndex> {
  const client = new Client({ node: url });
  const name = `sallyport-test-${randomBytes(6).toString('hex')}`;
  await client.indices.create({
    index: name,
    settings: { number_of_shards: 1, number_of_replicas: 0 },
    mappings: { properties: properties as never },
  });
  // As text: numbers beyond 2^53 would not survive being parsed here.
  await client.transport.request({
    method: 'POST',
    path: `/${name}/_bulk`,
    querystring: 'refresh=true',
    bulkBody: documents.map((document) => `{"index":{}}\n${document}\n`).join(''),
  });
  return {
    name,
    async remove() {
      await client.indices.delete({ index: name });
      await client.close();
    },
  };
}
