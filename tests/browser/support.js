// What the tests share: the browser, its visitors, the log of requests, and the control of what is behind the pages.
"use strict";

const assert = require("node:assert/strict");
const fs = require("node:fs");
const path = require("node:path");
const { chromium } = require("playwright-core");

const WORLD = JSON.parse(process.env.SMITH_BROWSER);
const SCREENSHOTS = process.env.SMITH_SCREENSHOTS;
const WITHIN_MS = 60000;
const AXE = fs.readFileSync(require.resolve("axe-core/axe.min.js"), "utf8");
const NET_LOG = path.join(WORLD.folder, "net-log.json");
const DESKTOP = { width: 1280, height: 900 };
const PHONE = { width: 390, height: 844 };
const WALL = { width: 2560, height: 1440 };
// The browser's own services would ask servers of its maker. No name is looked up, so nothing leaves this machine.
const CHROMIUM_OPTIONS = [
  "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
  "--disable-component-update", "--disable-sync", "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1",
  `--log-net-log=${NET_LOG}`,
];

let browser = null;

async function openBrowser() {
  browser = await chromium.launch({ executablePath: WORLD.chromium, headless: true, args: CHROMIUM_OPTIONS });
}

async function closeBrowser() {
  await browser.close();
}

// A browser of its own for one person, with the log of all that it requests.
async function newVisitor(options = {}) {
  const context = await browser.newContext({
    viewport: DESKTOP, locale: "en-GB", timezoneId: "America/New_York", ignoreHTTPSErrors: true, ...options,
  });
  context.setDefaultTimeout(WITHIN_MS);
  const visitor = { context, requests: [], dialogs: [], errors: [], page: null };
  context.on("request", (request) => visitor.requests.push(request.url()));
  context.on("page", (page) => {
    page.on("dialog", async (dialog) => { visitor.dialogs.push(dialog.message()); await dialog.dismiss(); });
    page.on("pageerror", (error) => visitor.errors.push(String(error)));
  });
  visitor.page = await context.newPage();
  return visitor;
}

// Runs a test with a visitor, who has logged in at the site unless `name` is empty.
async function withVisitor(site, options, run) {
  const { name = "Ada", ...rest } = options;
  const visitor = await newVisitor(rest);
  try {
    if (name) await logIn(visitor.page, site.url, site.token || WORLD.prepared.token, name);
    await run(visitor.page, visitor);
    assert.deepEqual(visitor.dialogs, []);
    assert.deepEqual(visitor.errors, []);
  } finally {
    await visitor.context.close();
  }
}

function address(base, where) {
  return new URL(where.replace(/^\//, ""), base.endsWith("/") ? base : `${base}/`).href;
}

async function logIn(page, base, token, name = "Ada") {
  await page.goto(address(base, "login"));
  await page.getByLabel("Your name").fill(name);
  await page.getByLabel("Token").fill(token);
  await page.getByRole("button", { name: "Log in" }).click();
  await page.getByRole("button", { name: "Log out" }).waitFor();
}

// Calls the harness, which changes what is behind the pages.
async function control(verb, values = {}) {
  const answer = await fetch(`${WORLD.control}/${verb}`, { method: "POST", body: JSON.stringify(values) });
  const result = await answer.json();
  assert.equal(answer.status, 200, JSON.stringify(result));
  return result;
}

// Calls a function again and again until its result is true, and returns the result.
async function waitFor(what, check) {
  const limit = Date.now() + WITHIN_MS;
  for (;;) {
    const result = await check();
    if (result) return result;
    assert.ok(Date.now() < limit, `waited in vain for ${what}`);
    await new Promise((resolve) => { setTimeout(resolve, 100); });
  }
}

// Asserts that axe finds nothing serious.
async function assertAccessible(page, where) {
  await page.evaluate(AXE);
  const { violations } = await page.evaluate(() => globalThis.axe.run(document, { resultTypes: ["violations"] }));
  const serious = violations.filter((found) => ["serious", "critical"].includes(found.impact));
  const texts = serious.map((found) => `${found.id}: ${found.nodes.map((node) => node.html).slice(0, 3).join(" | ")}`);
  assert.deepEqual(texts, [], where);
}

// The page fits: nothing is wider than the window, so nobody must scroll to the side.
async function assertFits(page, where) {
  const width = await page.evaluate(() => document.documentElement.scrollWidth - document.documentElement.clientWidth);
  assert.equal(width, 0, `${where} is ${width} pixels too wide`);
}

async function screenshot(page, name, options = {}) {
  await page.screenshot({ path: path.join(SCREENSHOTS, `${name}.png`), ...options });
}

module.exports = {
  DESKTOP, NET_LOG, PHONE, WALL, WORLD, address, assertAccessible, assertFits, closeBrowser, control, logIn, newVisitor,
  openBrowser, screenshot, waitFor, withVisitor,
};
