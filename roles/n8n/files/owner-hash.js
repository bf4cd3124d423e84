// Keep the bcrypt hash of the owner's password: owner-hash.js NODE_MODULES PASSWORD_FILE HASH_FILE
// Writes (and prints "changed") only when the hash does not match the password, because bcrypt salts every hash anew.
'use strict';

const fs = require('fs');

const [modules, passwordFile, hashFile] = process.argv.slice(2);
const bcrypt = require(require.resolve('bcryptjs', { paths: [modules] }));
const password = fs.readFileSync(passwordFile, 'utf8').trim();
const current = fs.existsSync(hashFile) ? fs.readFileSync(hashFile, 'utf8').trim() : '';

if (!current || !bcrypt.compareSync(password, current)) {
  fs.writeFileSync(hashFile + '.new', bcrypt.hashSync(password, 10) + '\n', { mode: 0o400 });
  fs.renameSync(hashFile + '.new', hashFile);
  console.log('changed');
}
