-- As the caller gave them: the host that programs see, and a JSON array of the ports that speak TLS.
ALTER TABLE sandboxes ADD COLUMN host_mask TEXT;
ALTER TABLE sandboxes ADD COLUMN https_ports TEXT NOT NULL DEFAULT '[]';
