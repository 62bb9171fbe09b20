/** @type {import('next').NextConfig} */
export default {
  // Node's own modules are in what the sandbox's client needs; it runs on the server only and is not bundled.
  serverExternalPackages: ['@e2b/code-interpreter', 'e2b'],
}
