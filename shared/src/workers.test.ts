import { expect } from 'chai';
import { listWorkers } from './workers.js';

describe('listWorkers', () => {
  it('gives each network its own workers and the shared ones', () => {
    expect(listWorkers('request')).to.include.members(['export-requests', 'import-batches']);
    expect(listWorkers('request')).not.to.include('execute-queries');
    expect(listWorkers('response')).to.include.members(['execute-queries', 'import-batches']);
    expect(listWorkers('response')).not.to.include('export-requests');
  });
});
