import { spawn } from 'node:child_process';
import { expect } from 'chai';
import { eventually } from './testing.js';

const shutdownUrl = new URL('./shutdown.js', import.meta.url).href;
const logUrl = new URL('./log.js', import.meta.url).href;

type Ended = { code: number | null; output: string; log: string };

/** Runs a script beside `onShutdown`, sends signals once it says ready, and waits for its end. */
async function runScript(script: string, signals: NodeJS.Signals[] = []): Promise<Ended> {
  const head = `
    import { onShutdown } from ${JSON.stringify(shutdownUrl)};
    import { createLog } from ${JSON.stringify(logUrl)};
    const log = createLog('child', 'info');
    const step = (name, close = async () => {}) => ({ name, close: () => { console.log(name); return close(); } });
    setInterval(() => {}, 1000);
  `;
  const child = spawn(process.execPath, ['--input-type=module', '-e', head + script]);
  const ended: Ended = { code: null, output: '', log: '' };
  child.stdout.on('data', (chunk: Buffer) => (ended.output += chunk.toString()));
  child.stderr.on('data', (chunk: Buffer) => (ended.log += chunk.toString()));
  const closed = new Promise<number | null>((resolve) => child.on('close', resolve));
  for (const [index, signal] of signals.entries()) {
    await eventually(() => ended.output.split('ready').length > index + 1);
    child.kill(signal);
  }
  ended.code = await closed;
  return ended;
}

describe('onShutdown', () => {
  it('closes the last opened first and exits with 0', async () => {
    const script = `
      const steps = [step('database')];
      onShutdown(steps, log);
      steps.push(step('server'));
      console.log('ready');
    `;
    const { code, output } = await runScript(script, ['SIGTERM']);
    expect(output.trim().split('\n')).to.deep.equal(['ready', 'server', 'database']);
    expect(code).to.equal(0);
  });

  it('closes the rest when a step fails, and exits with 1', async () => {
    const script = `
      onShutdown([step('database'), step('server', async () => { throw new Error('no'); })], log);
      console.log('ready');
    `;
    const { code, output, log } = await runScript(script, ['SIGINT']);
    expect(output).to.contain('database');
    expect(log).to.contain('closing failed');
    expect(code).to.equal(1);
  });

  it('gives up at the limit', async () => {
    const script = `
      onShutdown([step('server', () => new Promise(() => {}))], log, { limitMs: 50 });
      console.log('ready');
    `;
    const { code, log } = await runScript(script, ['SIGTERM']);
    expect(log).to.contain('stopping took too long');
    expect(code).to.equal(1);
  });

  it('exits at once at a second signal', async () => {
    const script = `
      onShutdown([step('ready', () => new Promise(() => {}))], log);
      console.log('ready');
    `;
    const { code, log } = await runScript(script, ['SIGTERM', 'SIGTERM']);
    expect(log).to.contain('stopped at once');
    expect(code).to.equal(1);
  });

  for (const bug of [
    'Promise.reject(new Error("bug"))',
    'setTimeout(() => { throw new Error("bug") })',
  ]) {
    it(`logs a bug and exits with 1: ${bug}`, async () => {
      const { code, log } = await runScript(`onShutdown([], log); ${bug};`);
      expect(log).to.contain('"fatal"').and.to.contain('bug');
      expect(code).to.equal(1);
    });
  }
});
