// Runs the tests of the files that are named as arguments, with one browser.
"use strict";

const { after, before } = require("node:test");
const { closeBrowser, openBrowser } = require("./support.js");

before(openBrowser);
after(closeBrowser);
for (const file of process.argv.slice(2)) require(file);
