// SPDX-License-Identifier: GPL-3.0-or-later
// Loads every node and every credential type of an unpacked n8n release, as n8n itself does on first use.
// It finds what a prune rule took away by mistake and what lacks a compiled part.
// Usage: node check.js <release directory>; prints one JSON line: {"loaded": 1015, "failed": {"name": "reason"}}
'use strict';

const fs = require('node:fs');
const path = require('node:path');

const modules = path.join(path.resolve(process.argv[2]), 'node_modules');
const failed = {};
let loaded = 0;

function attempt(name, action) {
	try {
		action();
		loaded += 1;
	} catch (error) {
		failed[name] = String(error.message).split('\n')[0];
	}
}

process.on('unhandledRejection', () => {});
for (const name of ['n8n-nodes-base', '@n8n/n8n-nodes-langchain']) {
	const directory = path.join(modules, name);
	for (const kind of ['nodes', 'credentials']) {
		const known = JSON.parse(fs.readFileSync(path.join(directory, 'dist/known', `${kind}.json`), 'utf8'));
		for (const [type, { className, sourcePath }] of Object.entries(known)) {
			attempt(`${name} ${type}`, () => new (require(path.join(directory, sourcePath))[className])());
		}
	}
}
for (const name of ['n8n', 'n8n-core', 'n8n-workflow', '@n8n/task-runner', 'isolated-vm', 'pg', 'bcryptjs']) {
	attempt(name, () => require(require.resolve(name, { paths: [path.join(modules, 'n8n')] })));
}
process.stdout.write(`${JSON.stringify({ loaded, failed })}\n`, () => process.exit(0));
