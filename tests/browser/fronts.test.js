// The pages over TLS, and behind the reverse proxies of the documentation, with a path prefix.
"use strict";

const assert = require("node:assert/strict");
const { test } = require("node:test");
const { WORLD, address, control, logIn, withVisitor } = require("./support.js");

const SITE = WORLD.prepared;
const { jobs } = SITE;

for (const [name, url] of Object.entries(WORLD.fronts)) {
  test(`behind ${name}, all pages, the live output and actions work under a prefix`, async () => {
    await withVisitor({ ...SITE, url }, {}, async (page, visitor) => {
      for (const where of ["", "jobs", "vms", "executors", "settings", "audit", "doctor"]) {
        const answer = await page.goto(address(url, where));
        assert.equal(answer.status(), 200, where);
      }
      const failed = [];
      page.on("response", (response) => { if (response.status() >= 400) failed.push(response.url()); });
      await page.getByRole("link", { name: "Jobs" }).click();
      await page.getByRole("link", { name: String(jobs.completed), exact: true }).click();
      await page.getByText("The job has ended.").or(page.getByRole("heading", { name: "Fields" })).first().waitFor();
      await page.goto(address(url, `jobs/${jobs.running}`));
      await page.locator("#output").getByText("TASK [Create the VM]").waitFor();
      await control("prepared/story", { text: `behind ${name}` });
      await page.locator("#story").getByText(`behind ${name}`).waitFor();
      await page.goto(address(url, "doctor"));
      await page.getByRole("button", { name: "Run the checks" }).click();
      await page.getByText("Checked").waitFor();
      assert.deepEqual(failed, []);
      const prefix = new URL(url);
      assert.ok(visitor.requests.every((request) => request.startsWith(prefix.href)), visitor.requests.join("\n"));
      const [cookie] = await visitor.context.cookies();
      assert.equal(`${cookie.path}/`, prefix.pathname);
      await page.getByRole("button", { name: "Log out" }).click();
      await page.getByRole("heading", { name: "Log in" }).waitFor();
    });
  });
}

test("over TLS the pages, the live output and actions work, and the cookie is sent over TLS only", async () => {
  await withVisitor(SITE, { name: "" }, async (page, visitor) => {
    const url = SITE.securedUrl;
    await logIn(page, url, SITE.token);
    const [cookie] = await visitor.context.cookies();
    assert.deepEqual(
      [cookie.secure, cookie.httpOnly, cookie.sameSite], [true, true, "Strict"],
    );
    await page.goto(address(url, `/jobs/${jobs.running}`));
    await page.locator("#output").getByText("TASK [Create the VM]").waitFor();
    await page.goto(address(url, "/doctor"));
    await page.getByRole("button", { name: "Run the checks" }).click();
    await page.getByText("Checked").waitFor();
    assert.ok(visitor.requests.every((request) => request.startsWith("https://")));
  });
});
