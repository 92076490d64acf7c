#!/usr/bin/env node
import { runRequestNetwork } from '../dist/main.js';

await runRequestNetwork();
