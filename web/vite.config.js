// Builds the page of the explorer into the package, with names that do not change and the notices of what is inside.
import { existsSync, readFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { svelte } from "@sveltejs/vite-plugin-svelte";
import { defineConfig } from "vite";

const OUT = "../src/frevl/deployment/service/explorer/page";

/** Write the licence of every package that came into the bundle. */
function licences() {
  return {
    name: "licences",
    generateBundle(_, bundle) {
      const packages = new Map();
      for (const chunk of Object.values(bundle)) {
        for (const id of chunk.moduleIds ?? []) {
          const file = id.replace(/^\0/, "");
          const found = file.match(/^(.*node_modules\/(?:@[^/]+\/)?[^/]+)\//);
          if (found) packages.set(found[1], dirname(file));
        }
      }
      const notices = [...packages.keys()].sort().map((folder) => {
        const about = JSON.parse(readFileSync(join(folder, "package.json"), "utf8"));
        const name = ["LICENSE.md", "LICENSE", "license", "LICENSE.txt"].find((one) => existsSync(join(folder, one)));
        if (!name) throw new Error(`${about.name} has no licence file to keep`);
        return `${about.name} ${about.version} (${about.license})\n\n${readFileSync(join(folder, name), "utf8").trim()}\n`;
      });
      this.emitFile({ type: "asset", fileName: "licences.txt", source: notices.join(`\n${"-".repeat(72)}\n\n`) });
    },
  };
}

export default defineConfig({
  base: "/explore/page/",
  plugins: [svelte({ compilerOptions: { css: "external" } }), licences()],
  build: {
    outDir: OUT,
    emptyOutDir: true,
    modulePreload: false,
    target: "es2022",
    assetsInlineLimit: 0,
    chunkSizeWarningLimit: 300,
    rollupOptions: { output: { entryFileNames: "[name].js", chunkFileNames: "[name].js", assetFileNames: "[name][extname]" } },
  },
});
