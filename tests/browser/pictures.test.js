// Takes the pictures for the documentation from the pages of a real agent: on a phone at night, on a wall screen, and
// of a running job.
"use strict";

const { test } = require("node:test");
const { DESKTOP, WORLD, address, assertFits, control, screenshot, waitFor, withVisitor } = require("./support.js");

const { lab } = WORLD;
const NIGHT = { viewport: { width: 390, height: 844 }, colorScheme: "dark", deviceScaleFactor: 1 };
const WALL = { viewport: { width: 1600, height: 900 }, colorScheme: "dark" };

test("a phone at night, a wall screen and a running job", async () => {
  const services = [];
  await control("lab/clone-lasts", { seconds: 0 });
  await control("lab/fail-next-clone", { text: "unable to create image: no space left on device" });
  for (const name of ["shop", "mail", "wiki", "build"]) services.push(await control("lab/order", { name }));
  for (const service of services) await control("lab/wait", { service });
  await control("lab/clone-lasts", { seconds: 400 });
  const service = await control("lab/order", { name: "forum" });
  const job = await waitFor("the job", async () => {
    const found = await control("lab/last-job", { service });
    return found && found.status === "processing" && found;
  });
  await withVisitor(lab, { viewport: DESKTOP, colorScheme: "light" }, async (page) => {
    await page.goto(address(lab.url, `/jobs/${job.id}`));
    await page.locator("#story").getByText("cloning").first().waitFor();
    await screenshot(page, "docs-job");
    await page.goto(address(lab.url, "/executors"));
    const form = page.locator("form", { has: page.getByRole("button", { name: "Pause" }) });
    await form.getByLabel("Reason").fill("storage of pve1 is full");
    await form.getByLabel("All agents claim").check();
    await form.getByRole("button").click();
    await page.getByText("storage of pve1 is full").waitFor();
  });
  for (const [name, options] of Object.entries({ "docs-phone": NIGHT, "docs-wall": WALL })) {
    await withVisitor(lab, options, async (page) => {
      await page.goto(address(lab.url, "/"));
      await assertFits(page, name);
      await screenshot(page, name);
    });
  }
  await control("lab/cancel", { job: job.id });
  await control("lab/wait", { service });
});
