/** The part of autocannon that the benchmarks use; it brings no types of its own. */
declare module 'autocannon' {
  type Options = {
    url: string;
    method: 'GET' | 'POST';
    headers?: Record<string, string>;
    body?: string;
    /** Sent in turn by every connection. */
    requests?: { path: string; headers: Record<string, string> }[];
    connections: number;
    /** Runs once for each connection. */
    setupClient?: (client: { setHeaders(headers: Record<string, string>): void }) => void;
    duration: number;
  };
  type Result = {
    '2xx': number;
    '3xx': number;
    '4xx': number;
    '5xx': number;
    non2xx: number;
    errors: number;
    duration: number;
    /** Milliseconds. */
    latency: { p99: number };
  };
  export default function autocannon(options: Options): Promise<Result>;
}
