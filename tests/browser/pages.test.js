// Every page in light and dark, on a desktop, a phone and a wall screen; keyboard, screen reader and local time.
"use strict";

const assert = require("node:assert/strict");
const { test } = require("node:test");
const {
  DESKTOP, PHONE, WALL, WORLD, address, assertAccessible, assertFits, screenshot, withVisitor,
} = require("./support.js");

const SITE = WORLD.prepared;
const { jobs } = SITE;
const PAGES = {
  overview: "/", jobs: "/jobs", running: `/jobs/${jobs.running}`, completed: `/jobs/${jobs.completed}`,
  failed: `/jobs/${jobs.failed}`, pending: `/jobs/${jobs.pending}`, vms: "/vms", executors: "/executors",
  settings: "/settings", audit: "/audit", doctor: "/doctor", missing: "/jobs/999999",
};
const LOOKS = {
  light: { viewport: DESKTOP, colorScheme: "light" },
  dark: { viewport: DESKTOP, colorScheme: "dark" },
  phone: { viewport: PHONE, colorScheme: "dark", hasTouch: true, isMobile: true },
  wall: { viewport: WALL, colorScheme: "dark" },
};

for (const [look, options] of Object.entries(LOOKS)) {
  test(`every page is accessible and fits: ${look}`, async () => {
    await withVisitor(SITE, options, async (page) => {
      for (const [name, where] of Object.entries(PAGES)) {
        await page.goto(address(SITE.url, where));
        await assertFits(page, `${where} (${look})`);
        await assertAccessible(page, `${where} (${look})`);
        await screenshot(page, `${name}-${look}`, { fullPage: true });
      }
    });
    await withVisitor(SITE, { ...options, name: "" }, async (page) => {
      await page.goto(address(SITE.url, "/login"));
      await assertFits(page, "login");
      await assertAccessible(page, `login (${look})`);
      await screenshot(page, `login-${look}`);
    });
  });
}

test("the colours follow the scheme of the browser", async () => {
  const backgrounds = {};
  for (const colorScheme of ["light", "dark"]) {
    await withVisitor(SITE, { colorScheme }, async (page) => {
      backgrounds[colorScheme] = await page.evaluate(() => getComputedStyle(document.body).backgroundColor);
    });
  }
  assert.notEqual(backgrounds.light, backgrounds.dark);
});

test("every link, field and button is reached with the keyboard, and shows that it has the focus", async () => {
  await withVisitor(SITE, {}, async (page) => {
    for (const where of ["/", "/jobs", `/jobs/${jobs.pending}`, "/executors", "/vms", "/doctor"]) {
      await page.goto(address(SITE.url, where));
      const wanted = await page.evaluate(() => {
        const selector = "a[href], button, input:not([type=hidden]), select, summary, [tabindex='0']";
        const reachable = [...document.querySelectorAll(selector)].filter((element) => element.checkVisibility());
        reachable.forEach((element, number) => { element.dataset.number = number; });
        return reachable.length;
      });
      const reached = new Set();
      for (let presses = 0; presses < wanted + 5; presses += 1) {
        await page.keyboard.press("Tab");
        const found = await page.evaluate(() => {
          const element = document.activeElement;
          return { number: element.dataset.number, outline: getComputedStyle(element).outlineStyle };
        });
        if (found.number === undefined) continue;
        assert.notEqual(found.outline, "none", `${where}: the focus is not seen`);
        reached.add(found.number);
      }
      assert.equal(reached.size, wanted, where);
    }
  });
});

test("the first press of Tab reaches a link that skips the menu", async () => {
  await withVisitor(SITE, {}, async (page) => {
    await page.goto(address(SITE.url, "/jobs"));
    await page.keyboard.press("Tab");
    assert.equal(await page.evaluate(() => document.activeElement.textContent), "Skip to the content");
    assert.ok(await page.evaluate(() => document.activeElement.getBoundingClientRect().left >= 0));
    await page.keyboard.press("Enter");
    assert.equal(await page.evaluate(() => document.activeElement.id), "main");
  });
});

test("a screen reader gets tables with headings on a phone, and announces what changes", async () => {
  await withVisitor(SITE, LOOKS.phone, async (page, visitor) => {
    await page.goto(address(SITE.url, "/jobs"));
    const session = await visitor.context.newCDPSession(page);
    const { nodes } = await session.send("Accessibility.getFullAXTree");
    const roles = new Set(nodes.filter((node) => !node.ignored).map((node) => node.role?.value));
    for (const role of ["table", "row", "columnheader", "cell", "navigation", "main", "banner", "search"]) {
      assert.ok(roles.has(role), `no ${role}`);
    }
    await page.goto(address(SITE.url, `/jobs/${jobs.running}`));
    assert.equal(await page.locator("#output-state[role=status]").count(), 1);
    assert.equal(await page.locator("#connection[role=status]").count(), 1);
  });
});

test("each time is in UTC, with the local time and its zone beside it", async () => {
  await withVisitor(SITE, { locale: "en-US" }, async (page) => {
    await page.goto(address(SITE.url, `/jobs/${jobs.completed}`));
    const time = page.locator("ol.timeline time").first();
    const moment = new Date(await time.getAttribute("datetime"));
    const local = moment.toLocaleTimeString("en-US", { timeZone: "America/New_York", timeZoneName: "short" });
    const shown = await time.textContent();
    assert.match(shown, /^\d{4}-\d\d-\d\d \d\d:\d\d:\d\dZ /);
    assert.equal(shown.split("Z ")[1].replace(/\s/g, " "), local.replace(/\s/g, " "));
    assert.match(await page.locator("footer").textContent(), /times are UTC, with the time in America\/New_York/);
  });
});

test("the list of jobs is filtered while the visitor types, and without a script", async () => {
  await withVisitor(SITE, {}, async (page) => {
    await page.goto(address(SITE.url, "/jobs"));
    await page.getByLabel("Status").selectOption("failed");
    await page.waitForURL(/status=failed/);
    await page.waitForFunction(() => document.querySelectorAll("#list tbody tr").length === 1);
    await page.getByLabel("Search").pressSequentially("no-such-vm");
    await page.getByText("No jobs match.").waitFor();
  });
  await withVisitor(SITE, { javaScriptEnabled: false }, async (page) => {
    await page.goto(address(SITE.url, "/jobs"));
    await page.getByLabel("Status").selectOption("failed");
    await page.getByRole("button", { name: "Show" }).click();
    assert.equal(await page.locator("#list tbody tr").count(), 1);
  });
});
