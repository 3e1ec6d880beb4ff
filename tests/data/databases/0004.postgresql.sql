SET statement_timeout = 0;
SET lock_timeout = 0;
SET idle_in_transaction_session_timeout = 0;
SET client_encoding = 'UTF8';
SET standard_conforming_strings = on;
SELECT pg_catalog.set_config('search_path', '', false);
SET check_function_bodies = false;
SET xmloption = content;
SET client_min_messages = warning;
SET row_security = off;
CREATE FUNCTION public.audit_refuse() RETURNS trigger
    LANGUAGE plpgsql
    AS $$ BEGIN RAISE EXCEPTION 'the audit table is append-only'; END $$;
SET default_tablespace = '';
SET default_table_access_method = heap;
CREATE TABLE public.alembic_version (
    version_num character varying(32) NOT NULL
);
CREATE TABLE public.audit (
    id integer NOT NULL,
    at timestamp with time zone NOT NULL,
    who character varying(100) NOT NULL,
    verb character varying(40) NOT NULL,
    subject_kind character varying(20) NOT NULL,
    subject_id character varying(100) NOT NULL,
    before json,
    after json,
    reason text
);
CREATE SEQUENCE public.audit_id_seq
    AS integer
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1;
ALTER SEQUENCE public.audit_id_seq OWNED BY public.audit.id;
CREATE TABLE public.critical_jobs (
    name character varying(40) NOT NULL,
    interval_s double precision NOT NULL,
    due_at timestamp with time zone,
    last_started_at timestamp with time zone,
    last_finished_at timestamp with time zone,
    last_ok_at timestamp with time zone,
    last_error text,
    failures integer NOT NULL,
    runs integer NOT NULL
);
CREATE TABLE public.jobs (
    id integer NOT NULL,
    fulcrum_id character varying(36) NOT NULL,
    service_id character varying(36),
    group_id character varying(36),
    action character varying(100) NOT NULL,
    params json,
    service json,
    defect text,
    priority integer NOT NULL,
    status character varying(20) NOT NULL,
    attempt integer NOT NULL,
    crashes integer NOT NULL,
    cancel_requested boolean NOT NULL,
    available_at timestamp with time zone,
    core_created_at timestamp with time zone NOT NULL,
    deadline_at timestamp with time zone NOT NULL,
    received_at timestamp with time zone NOT NULL,
    owner character varying(64),
    lease_until timestamp with time zone,
    epoch integer NOT NULL,
    claim_sent_at timestamp with time zone,
    claimed_at timestamp with time zone,
    started_at timestamp with time zone,
    finished_at timestamp with time zone,
    reported_at timestamp with time zone,
    report_state character varying(20) NOT NULL,
    report_attempts integer NOT NULL,
    report_after timestamp with time zone,
    report_note text,
    error_code character varying(40),
    error_message text,
    result json,
    run_ident character varying(64),
    tenant_id character varying(36)
);
CREATE SEQUENCE public.jobs_id_seq
    AS integer
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1;
ALTER SEQUENCE public.jobs_id_seq OWNED BY public.jobs.id;
CREATE TABLE public.mappings (
    id integer NOT NULL,
    service_id character varying(36) NOT NULL,
    cluster character varying(100) NOT NULL,
    vmid integer NOT NULL,
    node character varying(100),
    name character varying(100) NOT NULL,
    marker character varying(100) NOT NULL,
    mac_address character varying(20),
    state character varying(20) NOT NULL,
    note text,
    created_at timestamp with time zone NOT NULL,
    updated_at timestamp with time zone NOT NULL,
    deleted_at timestamp with time zone,
    kind character varying(10) DEFAULT 'qemu'::character varying NOT NULL,
    delete_at timestamp with time zone
);
CREATE SEQUENCE public.mappings_id_seq
    AS integer
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1;
ALTER SEQUENCE public.mappings_id_seq OWNED BY public.mappings.id;
CREATE TABLE public.nodes (
    id character varying(64) NOT NULL,
    host character varying(255) NOT NULL,
    pid integer NOT NULL,
    version character varying(40) NOT NULL,
    started_at timestamp with time zone NOT NULL,
    seen_at timestamp with time zone NOT NULL,
    stopped_at timestamp with time zone,
    stop_reason character varying(40),
    concurrency_wanted integer NOT NULL,
    concurrency integer NOT NULL,
    draining boolean NOT NULL
);
CREATE TABLE public.runs (
    id integer NOT NULL,
    job_id integer NOT NULL,
    ident character varying(64) NOT NULL,
    attempt integer NOT NULL,
    playbook character varying(100) NOT NULL,
    started_at timestamp with time zone NOT NULL,
    ended_at timestamp with time zone,
    rc integer,
    status character varying(20),
    reason text,
    folder text,
    upids json
);
CREATE SEQUENCE public.runs_id_seq
    AS integer
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1;
ALTER SEQUENCE public.runs_id_seq OWNED BY public.runs.id;
ALTER TABLE ONLY public.audit ALTER COLUMN id SET DEFAULT nextval('public.audit_id_seq'::regclass);
ALTER TABLE ONLY public.jobs ALTER COLUMN id SET DEFAULT nextval('public.jobs_id_seq'::regclass);
ALTER TABLE ONLY public.mappings ALTER COLUMN id SET DEFAULT nextval('public.mappings_id_seq'::regclass);
ALTER TABLE ONLY public.runs ALTER COLUMN id SET DEFAULT nextval('public.runs_id_seq'::regclass);
INSERT INTO public.alembic_version VALUES ('0004');
INSERT INTO public.audit VALUES (1, '2026-11-26 17:54:17.221897+00', 'smith', 'cancelled', 'job', '1', NULL, NULL, 'by mistake');
INSERT INTO public.audit VALUES (2, '2026-11-26 17:54:17.230467+00', 'agent', 'adopted', 'mapping', '854ecec6-54cf-4317-830c-bdca96271e76', NULL, '{"service_id": "854ecec6-54cf-4317-830c-bdca96271e76", "cluster": "pve", "vmid": 100002, "node": "pve1", "name": "reported-100002", "state": "active", "note": null}', NULL);
INSERT INTO public.critical_jobs VALUES ('Heartbeat', 10, '2026-11-26 17:54:23.666877+00', '2026-11-26 17:54:15.658678+00', '2026-11-26 17:54:15.674709+00', NULL, 'FulcrumUnavailable: PUT /agents/me/status: HTTP 503', 1, 1);
INSERT INTO public.critical_jobs VALUES ('GetPendingJobs', 60, '2026-11-26 17:55:03.686758+00', '2026-11-26 17:54:15.678404+00', '2026-11-26 17:54:15.687042+00', '2026-11-26 17:54:15.687042+00', NULL, 0, 1);
INSERT INTO public.critical_jobs VALUES ('PruneCompletedJobs', 60, '2026-11-26 17:55:03.705659+00', '2026-11-26 17:54:15.703086+00', '2026-11-26 17:54:15.710617+00', '2026-11-26 17:54:15.710617+00', NULL, 0, 1);
INSERT INTO public.critical_jobs VALUES ('DestroyDoomed', 60, '2026-11-26 17:55:03.714159+00', '2026-11-26 17:54:15.711959+00', '2026-11-26 17:54:15.714488+00', '2026-11-26 17:54:15.714488+00', NULL, 0, 1);
INSERT INTO public.critical_jobs VALUES ('ReportMetric', 60, '2026-11-26 17:55:03.725037+00', '2026-11-26 17:54:15.722762+00', '2026-11-26 17:54:15.725345+00', '2026-11-26 17:54:15.725345+00', NULL, 0, 1);
INSERT INTO public.critical_jobs VALUES ('Reconcile', 60, '2026-11-26 17:55:03.738892+00', '2026-11-26 17:54:15.726771+00', '2026-11-26 17:54:15.739269+00', '2026-11-26 17:54:15.739269+00', NULL, 0, 1);
INSERT INTO public.jobs VALUES (1, '2fb2b02a-eaae-4121-9542-d5f8a64246bc', '968fabe8-dfdf-4c05-abf5-6a88f4d49e66', NULL, 'create', NULL, '{"name": "reaped", "properties": {"cores": 2, "memoryMb": 2048, "diskGb": 10, "image": "debian-12"}}', NULL, 9, 'pending', 2, 1, false, '2026-11-26 17:54:21.071343+00', '2026-01-01 00:00:00+00', '2026-01-01 00:05:00+00', '2026-11-26 17:54:15.741725+00', NULL, NULL, 3, NULL, NULL, NULL, NULL, NULL, 'none', 0, NULL, NULL, NULL, 'NODE_DOWN: pve1', NULL, NULL, NULL);
INSERT INTO public.jobs VALUES (2, '5416db65-a2d1-4198-9c9a-36e7aa22630e', '854ecec6-54cf-4317-830c-bdca96271e76', NULL, 'create', NULL, '{"name": "reported", "properties": {"cores": 2, "memoryMb": 2048, "diskGb": 10, "image": "debian-12"}}', NULL, 9, 'completed', 1, 0, false, NULL, '2026-01-01 00:00:00+00', '2026-01-01 00:05:00+00', '2026-11-26 17:54:16.072518+00', 'node-of-then', NULL, 1, '2026-11-26 17:54:16.089001+00', '2026-11-26 17:54:16.096989+00', '2026-11-26 17:54:16.105443+00', '2026-11-26 17:54:16.145127+00', '2026-11-26 17:54:16.157953+00', 'reported', 0, NULL, NULL, NULL, NULL, '{"vmid": 100002, "node": "pve1", "status": "stopped", "mac_address": "BC:24:11:00:00:02"}', 'create-reported', '6f9619ff-8b86-4d01-8b42-00cf4fc964ff');
INSERT INTO public.jobs VALUES (3, 'd2c21933-c463-4af6-a486-b751dc0a1575', '7943595b-3a6b-47e4-a88d-d9dc9c049508', NULL, 'create', NULL, '{"name": "container", "properties": {"cores": 2, "memoryMb": 2048, "diskGb": 10, "image": "debian-12"}}', NULL, 9, 'completed', 1, 0, false, NULL, '2026-01-01 00:00:00+00', '2026-01-01 00:05:00+00', '2026-11-26 17:54:16.16848+00', 'node-of-then', NULL, 1, '2026-11-26 17:54:16.189687+00', '2026-11-26 17:54:16.191625+00', '2026-11-26 17:54:16.204382+00', '2026-11-26 17:54:16.230901+00', '2026-11-26 17:54:16.233809+00', 'reported', 0, NULL, NULL, NULL, NULL, '{"vmid": 100003, "node": "pve1", "status": "stopped", "mac_address": "BC:24:11:00:00:03"}', 'create-container', '6f9619ff-8b86-4d01-8b42-00cf4fc964ff');
INSERT INTO public.jobs VALUES (4, '63a9cd26-5f12-4a00-9355-2116642d439e', 'caf828d9-cc3e-47e7-a1c8-3559e0c0d7ec', NULL, 'create', NULL, '{"name": "orphaned", "properties": {"cores": 2, "memoryMb": 2048, "diskGb": 10, "image": "debian-12"}}', NULL, 9, 'completed', 1, 0, false, NULL, '2026-01-01 00:00:00+00', '2026-01-01 00:05:00+00', '2026-11-26 17:54:16.244663+00', 'node-of-then', NULL, 1, '2026-11-26 17:54:16.274441+00', '2026-11-26 17:54:16.276412+00', '2026-11-26 17:54:16.283074+00', '2026-11-26 17:54:16.322614+00', '2026-11-26 17:54:16.327676+00', 'reported', 0, NULL, NULL, NULL, NULL, '{"vmid": 100004, "node": "pve1", "status": "stopped", "mac_address": "BC:24:11:00:00:04"}', 'create-orphaned', '6f9619ff-8b86-4d01-8b42-00cf4fc964ff');
INSERT INTO public.jobs VALUES (5, '582718d7-edf3-44d2-8680-0551a8207256', '9551c02d-e757-43fb-bfd0-4d8417a5626e', NULL, 'create', NULL, '{"name": "ended-by-core", "properties": {"cores": 2, "memoryMb": 2048, "diskGb": 10, "image": "debian-12"}}', NULL, 9, 'failed', 1, 0, false, NULL, '2026-01-01 00:00:00+00', '2026-01-01 00:05:00+00', '2026-11-26 17:54:16.334809+00', 'node-of-then', NULL, 1, NULL, '2026-11-26 17:54:16.352909+00', NULL, '2026-11-26 17:54:16.354739+00', '2026-11-26 17:54:16.358929+00', 'orphaned', 0, NULL, 'HTTP 400', 'CAPACITY', 'CAPACITY: no node has room', NULL, NULL, NULL);
INSERT INTO public.jobs VALUES (8, '0ae732d5-3fe2-4464-a955-f448ae4737d6', '91607cda-ab58-4616-b6cc-1cc0113551c8', NULL, 'create', NULL, '{"name": "failed-due", "properties": {"cores": 2, "memoryMb": 2048, "diskGb": 10, "image": "debian-12"}}', NULL, 9, 'failed', 1, 0, false, NULL, '2026-01-01 00:00:00+00', '2026-01-01 00:05:00+00', '2026-11-26 17:54:16.430175+00', 'node-of-then', NULL, 1, NULL, '2026-11-26 17:54:16.445161+00', NULL, '2026-11-26 17:54:16.447945+00', NULL, 'due', 0, NULL, NULL, 'CAPACITY', 'CAPACITY: no node has room', NULL, NULL, '9a3f2c4e-1111-4222-8333-444455556666');
INSERT INTO public.jobs VALUES (6, '49a70966-310e-4fd0-af60-e8dda74532b8', '2cd15916-7403-4437-bff9-7e0925e4abad', NULL, 'create', NULL, '{"name": "unknown-to-core", "properties": {"cores": 2, "memoryMb": 2048, "diskGb": 10, "image": "debian-12"}}', NULL, 9, 'failed', 1, 0, false, NULL, '2026-01-01 00:00:00+00', '2026-01-01 00:05:00+00', '2026-11-26 17:54:16.362781+00', 'node-of-then', NULL, 1, NULL, '2026-11-26 17:54:16.378661+00', NULL, '2026-11-26 17:54:16.380469+00', '2026-11-26 17:54:16.386032+00', 'abandoned', 0, NULL, 'HTTP 400', 'CAPACITY', 'CAPACITY: no node has room', NULL, NULL, NULL);
INSERT INTO public.jobs VALUES (7, '3b675693-971d-4a09-b40f-9436ca01ab71', 'e1f3c667-9e59-4eff-8ed2-39f86bb52a2f', '9a3f2c4e-1111-4222-8333-444455556666', 'create', NULL, '{"name": "due", "properties": {"cores": 2, "memoryMb": 2048, "diskGb": 10, "image": "debian-12"}}', NULL, 9, 'completed', 1, 0, false, NULL, '2026-01-01 00:00:00+00', '2026-01-01 00:05:00+00', '2026-11-26 17:54:16.388227+00', 'node-of-then', NULL, 1, '2026-11-26 17:54:16.40183+00', '2026-11-26 17:54:16.403623+00', '2026-11-26 17:54:16.407196+00', '2026-11-26 17:54:16.422876+00', NULL, 'due', 0, NULL, NULL, NULL, NULL, '{"vmid": 100007, "node": "pve1", "status": "stopped", "mac_address": "BC:24:11:00:00:07"}', 'create-due', NULL);
INSERT INTO public.jobs VALUES (9, 'ce518780-d4ac-4708-884f-d31edc44c275', '6b05575b-69bd-4a13-abd3-e25067fc76d9', NULL, 'create', NULL, '{"name": "tried-once", "properties": {"cores": 2, "memoryMb": 2048, "diskGb": 10, "image": "debian-12"}}', NULL, 9, 'failed', 1, 0, false, NULL, '2026-01-01 00:00:00+00', '2026-01-01 00:05:00+00', '2026-11-26 17:54:16.451724+00', 'node-of-then', NULL, 1, NULL, '2026-11-26 17:54:16.469358+00', NULL, '2026-11-26 17:54:16.471089+00', NULL, 'due', 1, '2026-11-26 17:54:16.479945+00', 'POST /jobs: HTTP 503', 'CAPACITY', 'CAPACITY: no node has room', NULL, NULL, NULL);
INSERT INTO public.jobs VALUES (10, '80786fca-76a3-4aa4-9f12-2ffacba36bf8', '36f26358-5c02-405b-bd69-7344ce88a8cc', NULL, 'create', NULL, '{"name": "postponed", "properties": {"cores": 2, "memoryMb": 2048, "diskGb": 10, "image": "debian-12"}}', NULL, 9, 'failed', 1, 0, false, NULL, '2026-01-01 00:00:00+00', '2026-01-01 00:05:00+00', '2026-11-26 17:54:16.482824+00', 'node-of-then', NULL, 1, NULL, '2026-11-26 17:54:16.497696+00', NULL, '2026-11-26 17:54:16.503595+00', NULL, 'due', 1, '2036-11-23 17:54:16.50761+00', 'POST /jobs: HTTP 503', 'CAPACITY', 'CAPACITY: no node has room', NULL, NULL, NULL);
INSERT INTO public.jobs VALUES (11, '04924208-e6e5-421a-a87a-2cd60ee537f5', '813cfef5-44e1-485b-a81b-b4725908ba89', NULL, 'create', NULL, '{"name": "deleted", "properties": {"cores": 2, "memoryMb": 2048, "diskGb": 10, "image": "debian-12"}}', NULL, 9, 'completed', 1, 0, false, NULL, '2026-01-01 00:00:00+00', '2026-01-01 00:05:00+00', '2026-11-26 17:54:16.510999+00', 'node-of-then', NULL, 1, '2026-11-26 17:54:16.523285+00', '2026-11-26 17:54:16.526081+00', '2026-11-26 17:54:16.531911+00', '2026-11-26 17:54:16.547131+00', '2026-11-26 17:54:16.555322+00', 'reported', 0, NULL, NULL, NULL, NULL, '{"vmid": 100011, "node": "pve1", "status": "stopped", "mac_address": "BC:24:11:00:00:0B"}', 'create-deleted', NULL);
INSERT INTO public.jobs VALUES (12, 'ea3b758c-d3f0-43c2-b6c7-85e24a9587fc', '813cfef5-44e1-485b-a81b-b4725908ba89', NULL, 'delete', NULL, '{"name": "deleted", "properties": {"cores": 2, "memoryMb": 2048, "diskGb": 10, "image": "debian-12"}}', NULL, 9, 'completed', 1, 0, false, NULL, '2026-01-01 00:00:00+00', '2026-01-01 00:05:00+00', '2026-11-26 17:54:16.556665+00', 'node-of-then', NULL, 1, '2026-11-26 17:54:16.567506+00', '2026-11-26 17:54:16.571267+00', '2026-11-26 17:54:16.572659+00', '2026-11-26 17:54:16.594778+00', '2026-11-26 17:54:16.602808+00', 'reported', 0, NULL, NULL, NULL, NULL, '{"vmid": 100011, "status": "absent"}', 'delete-deleted', NULL);
INSERT INTO public.jobs VALUES (13, '3df0969f-c9d0-4f0f-9ab0-b5f814e49ef4', '09722b89-291f-4111-bbac-07afe31a14c5', NULL, 'create', NULL, '{"name": "purged", "properties": {"cores": 2, "memoryMb": 2048, "diskGb": 10, "image": "debian-12"}}', NULL, 9, 'completed', 1, 0, false, NULL, '2026-01-01 00:00:00+00', '2026-01-01 00:05:00+00', '2026-11-26 17:54:16.604169+00', 'node-of-then', NULL, 1, '2026-11-26 17:54:16.622941+00', '2026-11-26 17:54:16.624578+00', '2026-11-26 17:54:16.630865+00', '2026-11-26 17:54:16.647301+00', '2026-11-26 17:54:16.655357+00', 'reported', 0, NULL, NULL, NULL, NULL, '{"vmid": 100013, "node": "pve1", "status": "stopped", "mac_address": "BC:24:11:00:00:0D"}', 'create-purged', NULL);
INSERT INTO public.jobs VALUES (14, '6e6e5755-6ab4-4e07-b88d-71960c5cbefc', '09722b89-291f-4111-bbac-07afe31a14c5', NULL, 'delete', NULL, '{"name": "purged", "properties": {"cores": 2, "memoryMb": 2048, "diskGb": 10, "image": "debian-12"}}', NULL, 9, 'completed', 1, 0, false, NULL, '2026-01-01 00:00:00+00', '2026-01-01 00:05:00+00', '2026-11-26 17:54:16.656679+00', 'node-of-then', NULL, 1, '2026-11-26 17:54:16.667858+00', '2026-11-26 17:54:16.675604+00', '2026-11-26 17:54:16.678825+00', '2026-11-26 17:54:16.703253+00', '2026-11-26 17:54:16.711789+00', 'reported', 0, NULL, NULL, NULL, NULL, '{"vmid": 100013, "status": "stopped", "node": "pve1", "delete_at": 1000000000}', 'delete-purged', NULL);
INSERT INTO public.jobs VALUES (15, '591343f7-9c1c-4cb3-8895-e8e299e28952', '09722b89-291f-4111-bbac-07afe31a14c5', NULL, 'delete', NULL, '{"name": "purged-local", "properties": {"cores": 2, "memoryMb": 2048, "diskGb": 10, "image": "debian-12"}}', NULL, 9, 'completed', 1, 0, false, NULL, '2026-11-26 17:54:16.715067+00', '2026-11-26 17:54:16.715067+00', '2026-11-26 17:54:16.715158+00', 'node-of-then', NULL, 1, '2026-11-26 17:54:16.730652+00', '2026-11-26 17:54:16.734617+00', '2026-11-26 17:54:16.73883+00', '2026-11-26 17:54:16.751079+00', NULL, 'local', 0, NULL, NULL, NULL, NULL, '{"vmid": 100013, "status": "absent"}', 'delete-purged-local', NULL);
INSERT INTO public.jobs VALUES (16, '67225a94-3452-433a-8fbb-f6daf51efcc7', 'e39ac839-deb3-4162-9653-55a9c0704d5c', NULL, 'create', NULL, '{"name": "purge-now", "properties": {"cores": 2, "memoryMb": 2048, "diskGb": 10, "image": "debian-12"}}', NULL, 9, 'completed', 1, 0, false, NULL, '2026-01-01 00:00:00+00', '2026-01-01 00:05:00+00', '2026-11-26 17:54:16.759131+00', 'node-of-then', NULL, 1, '2026-11-26 17:54:16.771518+00', '2026-11-26 17:54:16.775109+00', '2026-11-26 17:54:16.776605+00', '2026-11-26 17:54:16.794831+00', '2026-11-26 17:54:16.799192+00', 'reported', 0, NULL, NULL, NULL, NULL, '{"vmid": 100016, "node": "pve1", "status": "stopped", "mac_address": "BC:24:11:00:00:10"}', 'create-purge-now', NULL);
INSERT INTO public.jobs VALUES (17, '165e9770-fa13-4184-a0d6-e95c81ad56c8', 'e39ac839-deb3-4162-9653-55a9c0704d5c', NULL, 'delete', NULL, '{"name": "purge-now", "properties": {"cores": 2, "memoryMb": 2048, "diskGb": 10, "image": "debian-12"}}', NULL, 9, 'completed', 1, 0, false, NULL, '2026-01-01 00:00:00+00', '2026-01-01 00:05:00+00', '2026-11-26 17:54:16.802835+00', 'node-of-then', NULL, 1, '2026-11-26 17:54:16.816398+00', '2026-11-26 17:54:16.818106+00', '2026-11-26 17:54:16.822892+00', '2026-11-26 17:54:16.837152+00', '2026-11-26 17:54:16.845863+00', 'reported', 0, NULL, NULL, NULL, NULL, '{"vmid": 100016, "status": "stopped", "node": "pve1", "delete_at": 1000000000}', 'delete-purge-now', NULL);
INSERT INTO public.jobs VALUES (18, '986df3f4-53b2-47c8-bafe-eb04dca7d8da', 'e39ac839-deb3-4162-9653-55a9c0704d5c', NULL, 'delete', NULL, NULL, NULL, 0, 'pending', 0, 0, false, NULL, '2026-11-26 17:54:16.847318+00', '2026-11-26 17:54:16.847318+00', '2026-11-26 17:54:16.847398+00', NULL, NULL, 0, NULL, NULL, NULL, NULL, NULL, 'local', 0, NULL, NULL, NULL, NULL, NULL, NULL, NULL);
INSERT INTO public.jobs VALUES (25, 'be73adf9-cdca-4824-bc4d-3b019219fe19', 'f8aade26-2d67-4b6a-bebd-65ea85eda9d0', NULL, 'create', NULL, '{"name": "requeued", "properties": {"cores": 2, "memoryMb": 2048, "diskGb": 10, "image": "debian-12"}}', NULL, 9, 'pending', 1, 0, false, '2026-11-26 17:54:22.172415+00', '2026-01-01 00:00:00+00', '2026-01-01 00:05:00+00', '2026-11-26 17:54:17.152076+00', NULL, NULL, 1, NULL, NULL, NULL, NULL, NULL, 'none', 0, NULL, NULL, NULL, 'PVE_UNREACHABLE: no connection', NULL, NULL, NULL);
INSERT INTO public.jobs VALUES (21, '9b10bb2b-5e3d-439d-9526-b26d10499064', 'e27aa68e-33d6-403f-9d0e-31f232472300', NULL, 'create', NULL, '{"name": "cloning", "properties": {"cores": 2, "memoryMb": 2048, "diskGb": 10, "image": "debian-12"}}', NULL, 9, 'processing', 1, 0, false, NULL, '2026-01-01 00:00:00+00', '2026-01-01 00:05:00+00', '2026-11-26 17:54:16.964081+00', 'node-of-then', '2026-11-26 17:53:16.976846+00', 1, '2026-11-26 17:54:16.986649+00', '2026-11-26 17:54:16.988479+00', '2026-11-26 17:54:16.989984+00', NULL, NULL, 'none', 0, NULL, NULL, NULL, NULL, NULL, 'create-cloning', '6f9619ff-8b86-4d01-8b42-00cf4fc964ff');
INSERT INTO public.jobs VALUES (19, '042f8bc1-45e7-4757-8499-0e602baef20a', '7cd1db74-5b5b-41c9-bf49-41020e922a2d', NULL, 'create', NULL, '{"name": "later", "properties": {"cores": 2, "memoryMb": 2048, "diskGb": 10, "image": "debian-12"}}', NULL, 9, 'completed', 1, 0, false, NULL, '2026-01-01 00:00:00+00', '2026-01-01 00:05:00+00', '2026-11-26 17:54:16.850551+00', 'node-of-then', NULL, 1, '2026-11-26 17:54:16.871781+00', '2026-11-26 17:54:16.873637+00', '2026-11-26 17:54:16.87561+00', '2026-11-26 17:54:16.89487+00', '2026-11-26 17:54:16.899598+00', 'reported', 0, NULL, NULL, NULL, NULL, '{"vmid": 100019, "node": "pve1", "status": "stopped", "mac_address": "BC:24:11:00:00:13"}', 'create-later', NULL);
INSERT INTO public.jobs VALUES (20, '304d3519-9000-4bf1-a337-3358117c68f1', '7cd1db74-5b5b-41c9-bf49-41020e922a2d', NULL, 'delete', NULL, '{"name": "later", "properties": {"cores": 2, "memoryMb": 2048, "diskGb": 10, "image": "debian-12"}}', NULL, 9, 'completed', 1, 0, false, NULL, '2026-01-01 00:00:00+00', '2026-01-01 00:05:00+00', '2026-11-26 17:54:16.902957+00', 'node-of-then', NULL, 1, '2026-11-26 17:54:16.918544+00', '2026-11-26 17:54:16.92283+00', '2026-11-26 17:54:16.930848+00', '2026-11-26 17:54:16.954855+00', '2026-11-26 17:54:16.95896+00', 'reported', 0, NULL, NULL, NULL, NULL, '{"vmid": 100019, "status": "stopped", "node": "pve1", "delete_at": 4000000000}', 'delete-later', NULL);
INSERT INTO public.jobs VALUES (26, 'bb786bba-675d-49f7-b867-dc8547118e8d', 'd41aec77-a0e0-4b3a-ad5a-ce90eba37fa4', NULL, 'create', NULL, '{"name": "requeued-for-long", "properties": {"cores": 2, "memoryMb": 2048, "diskGb": 10, "image": "debian-12"}}', NULL, 9, 'pending', 1, 0, false, '2036-11-23 17:54:17.191381+00', '2026-01-01 00:00:00+00', '2026-01-01 00:05:00+00', '2026-11-26 17:54:17.173041+00', NULL, NULL, 1, NULL, NULL, NULL, NULL, NULL, 'none', 0, NULL, NULL, NULL, 'PVE_UNREACHABLE: no connection', NULL, NULL, NULL);
INSERT INTO public.jobs VALUES (22, '0178aaec-03cf-4852-af7c-b449e436094a', '7f3b917f-0075-46e2-9787-9e82eb490961', NULL, 'create', NULL, '{"name": "cancelled", "properties": {"cores": 2, "memoryMb": 2048, "diskGb": 10, "image": "debian-12"}}', NULL, 9, 'processing', 1, 0, true, NULL, '2026-01-01 00:00:00+00', '2026-01-01 00:05:00+00', '2026-11-26 17:54:17.001531+00', 'node-of-then', '2026-11-26 17:53:17.063371+00', 1, '2026-11-26 17:54:17.070869+00', '2026-11-26 17:54:17.078535+00', '2026-11-26 17:54:17.082591+00', NULL, NULL, 'none', 0, NULL, NULL, NULL, NULL, NULL, 'create-cancelled', NULL);
INSERT INTO public.jobs VALUES (23, 'e6dcf7fa-d198-4197-ad26-c87e0c2d097a', '9dcf6b11-62e4-4232-85c4-84aa1fb8f538', NULL, 'create', NULL, '{"name": "claim-not-sent", "properties": {"cores": 2, "memoryMb": 2048, "diskGb": 10, "image": "debian-12"}}', NULL, 9, 'processing', 1, 0, false, NULL, '2026-01-01 00:00:00+00', '2026-01-01 00:05:00+00', '2026-11-26 17:54:17.109371+00', 'node-of-then', '2026-11-26 17:53:17.123868+00', 1, NULL, NULL, NULL, NULL, NULL, 'none', 0, NULL, NULL, NULL, NULL, NULL, NULL, NULL);
INSERT INTO public.jobs VALUES (24, 'c335ef1d-ea1c-4434-b5d0-e1d03622c019', 'b846de47-2056-4bdb-aff2-5ce8540fa976', NULL, 'create', NULL, '{"name": "claim-not-answered", "properties": {"cores": 2, "memoryMb": 2048, "diskGb": 10, "image": "debian-12"}}', NULL, 9, 'processing', 1, 0, false, NULL, '2026-01-01 00:00:00+00', '2026-01-01 00:05:00+00', '2026-11-26 17:54:17.12764+00', 'node-of-then', '2026-11-26 17:53:17.143953+00', 1, '2026-11-26 17:54:17.149117+00', NULL, NULL, NULL, NULL, 'none', 0, NULL, NULL, NULL, NULL, NULL, NULL, NULL);
INSERT INTO public.jobs VALUES (27, '205f762b-a96d-4ef1-9a41-3fb60e1c14c3', '854ecec6-54cf-4317-830c-bdca96271e76', NULL, 'start', '{"text": "\u00fcml\u00e4ut \ud83d\ude42", "number": 1.5}', NULL, NULL, 1, 'pending', 0, 0, false, NULL, '2026-01-01 01:40:00+00', '2026-01-01 01:45:00+00', '2026-11-26 17:54:17.196119+00', NULL, NULL, 0, NULL, NULL, NULL, NULL, NULL, 'none', 0, NULL, NULL, NULL, NULL, NULL, NULL, NULL);
INSERT INTO public.jobs VALUES (28, 'b3a7cd92-1667-474b-b73e-91b50766aeda', 'f7a7db90-7622-49f6-83b2-e0ab84ae1065', NULL, 'create', NULL, NULL, 'action: missing', 1, 'pending', 0, 0, false, NULL, '2026-01-01 01:41:00+00', '2026-01-01 01:46:00+00', '2026-11-26 17:54:17.206787+00', NULL, NULL, 0, NULL, NULL, NULL, NULL, NULL, 'none', 0, NULL, NULL, NULL, NULL, NULL, NULL, NULL);
INSERT INTO public.jobs VALUES (29, 'f3516124-b76b-4840-aaa8-684b3264d264', 'b6db72d8-bda8-4079-99d9-c53deffde264', NULL, 'create', NULL, NULL, NULL, 1, 'pending', 0, 0, false, NULL, '2026-01-01 01:42:00+00', '2026-01-01 01:47:00+00', '2026-11-26 17:54:17.215161+00', NULL, NULL, 0, '2026-11-26 17:54:17.215161+00', '2026-11-26 17:54:17.215161+00', NULL, NULL, NULL, 'none', 0, NULL, NULL, NULL, NULL, NULL, NULL, '9a3f2c4e-1111-4222-8333-444455556666');
INSERT INTO public.mappings VALUES (1, '854ecec6-54cf-4317-830c-bdca96271e76', 'pve', 100002, 'pve1', 'reported-100002', 'smith-uid=854ecec6-54cf-4317-830c-bdca96271e76', 'BC:24:11:00:00:02', 'active', NULL, '2026-11-26 17:54:16.125614+00', '2026-11-26 17:54:16.138793+00', NULL, 'qemu', NULL);
INSERT INTO public.mappings VALUES (2, '7943595b-3a6b-47e4-a88d-d9dc9c049508', 'pve', 100003, 'pve1', 'container-100003', 'smith-uid=7943595b-3a6b-47e4-a88d-d9dc9c049508', 'BC:24:11:00:00:03', 'active', NULL, '2026-11-26 17:54:16.212192+00', '2026-11-26 17:54:16.226925+00', NULL, 'lxc', NULL);
INSERT INTO public.mappings VALUES (3, 'caf828d9-cc3e-47e7-a1c8-3559e0c0d7ec', 'pve', 100004, 'pve1', 'orphaned-100004', 'smith-uid=caf828d9-cc3e-47e7-a1c8-3559e0c0d7ec', 'BC:24:11:00:00:04', 'orphaned', 'vanished', '2026-11-26 17:54:16.294871+00', '2026-11-26 17:54:16.331168+00', NULL, 'qemu', NULL);
INSERT INTO public.mappings VALUES (4, 'e1f3c667-9e59-4eff-8ed2-39f86bb52a2f', 'pve', 100007, 'pve1', 'due-100007', 'smith-uid=e1f3c667-9e59-4eff-8ed2-39f86bb52a2f', 'BC:24:11:00:00:07', 'active', NULL, '2026-11-26 17:54:16.414774+00', '2026-11-26 17:54:16.420027+00', NULL, 'qemu', NULL);
INSERT INTO public.mappings VALUES (5, '813cfef5-44e1-485b-a81b-b4725908ba89', 'pve', 100011, 'pve1', 'deleted-100011', 'smith-uid=813cfef5-44e1-485b-a81b-b4725908ba89', 'BC:24:11:00:00:0B', 'deleted', NULL, '2026-11-26 17:54:16.538842+00', '2026-11-26 17:54:16.591149+00', '2026-11-26 17:54:16.591149+00', 'qemu', NULL);
INSERT INTO public.mappings VALUES (6, '09722b89-291f-4111-bbac-07afe31a14c5', 'pve', 100013, 'pve1', 'purged-100013', 'smith-uid=09722b89-291f-4111-bbac-07afe31a14c5', 'BC:24:11:00:00:0D', 'deleted', NULL, '2026-11-26 17:54:16.636461+00', '2026-11-26 17:54:16.749386+00', '2026-11-26 17:54:16.749386+00', 'qemu', '2001-09-09 01:46:40+00');
INSERT INTO public.mappings VALUES (7, 'e39ac839-deb3-4162-9653-55a9c0704d5c', 'pve', 100016, 'pve1', 'purge-now-100016', 'smith-uid=e39ac839-deb3-4162-9653-55a9c0704d5c', 'BC:24:11:00:00:10', 'doomed', NULL, '2026-11-26 17:54:16.788156+00', '2026-11-26 17:54:16.833535+00', NULL, 'qemu', '2001-09-09 01:46:40+00');
INSERT INTO public.mappings VALUES (8, '7cd1db74-5b5b-41c9-bf49-41020e922a2d', 'pve', 100019, 'pve1', 'later-100019', 'smith-uid=7cd1db74-5b5b-41c9-bf49-41020e922a2d', 'BC:24:11:00:00:13', 'doomed', NULL, '2026-11-26 17:54:16.885707+00', '2026-11-26 17:54:16.942782+00', NULL, 'qemu', '2096-10-02 07:06:40+00');
INSERT INTO public.mappings VALUES (9, 'e27aa68e-33d6-403f-9d0e-31f232472300', 'pve', 100021, NULL, 'cloning-100021', 'smith-uid=e27aa68e-33d6-403f-9d0e-31f232472300', NULL, 'reserved', NULL, '2026-11-26 17:54:16.999701+00', '2026-11-26 17:54:16.999701+00', NULL, 'qemu', NULL);
INSERT INTO public.mappings VALUES (10, '7f3b917f-0075-46e2-9787-9e82eb490961', 'pve', 100022, NULL, 'cancelled-100022', 'smith-uid=7f3b917f-0075-46e2-9787-9e82eb490961', NULL, 'reserved', NULL, '2026-11-26 17:54:17.090815+00', '2026-11-26 17:54:17.090815+00', NULL, 'qemu', NULL);
INSERT INTO public.nodes VALUES ('node-of-then', 'pve-ops', 7, 'then', '2026-11-26 17:54:15.647113+00', '2026-11-26 17:54:15.647113+00', NULL, NULL, 8, 8, false);
INSERT INTO public.nodes VALUES ('node-that-stopped', 'pve-ops', 6, 'then', '2026-11-26 17:54:15.647113+00', '2026-11-26 17:54:15.647113+00', '2026-11-26 17:54:15.647113+00', 'max_runtime', 8, 2, true);
INSERT INTO public.runs VALUES (1, 2, 'create-reported', 1, 'create.yml', '2026-11-26 17:54:16.105443+00', '2026-11-26 17:54:16.134723+00', 0, 'successful', '', 'artifacts/create-reported', '["UPID:pve1:0000A:0000B:0000C:qmclone:9000:smith@pve!job:"]');
INSERT INTO public.runs VALUES (2, 3, 'create-container', 1, 'create.yml', '2026-11-26 17:54:16.204382+00', '2026-11-26 17:54:16.21674+00', 0, 'successful', '', 'artifacts/create-container', '["UPID:pve1:0000A:0000B:0000C:qmclone:9000:smith@pve!job:"]');
INSERT INTO public.runs VALUES (3, 4, 'create-orphaned', 1, 'create.yml', '2026-11-26 17:54:16.283074+00', '2026-11-26 17:54:16.306649+00', 0, 'successful', '', 'artifacts/create-orphaned', '["UPID:pve1:0000A:0000B:0000C:qmclone:9000:smith@pve!job:"]');
INSERT INTO public.runs VALUES (4, 7, 'create-due', 1, 'create.yml', '2026-11-26 17:54:16.407196+00', '2026-11-26 17:54:16.418612+00', 0, 'successful', '', 'artifacts/create-due', '["UPID:pve1:0000A:0000B:0000C:qmclone:9000:smith@pve!job:"]');
INSERT INTO public.runs VALUES (5, 11, 'create-deleted', 1, 'create.yml', '2026-11-26 17:54:16.531911+00', '2026-11-26 17:54:16.540409+00', 0, 'successful', '', 'artifacts/create-deleted', '["UPID:pve1:0000A:0000B:0000C:qmclone:9000:smith@pve!job:"]');
INSERT INTO public.runs VALUES (6, 12, 'delete-deleted', 1, 'delete.yml', '2026-11-26 17:54:16.572659+00', '2026-11-26 17:54:16.584265+00', 0, 'successful', '', 'artifacts/delete-deleted', '["UPID:pve1:0000A:0000B:0000C:qmclone:9000:smith@pve!job:"]');
INSERT INTO public.runs VALUES (7, 13, 'create-purged', 1, 'create.yml', '2026-11-26 17:54:16.630865+00', '2026-11-26 17:54:16.638496+00', 0, 'successful', '', 'artifacts/create-purged', '["UPID:pve1:0000A:0000B:0000C:qmclone:9000:smith@pve!job:"]');
INSERT INTO public.runs VALUES (8, 14, 'delete-purged', 1, 'delete.yml', '2026-11-26 17:54:16.678825+00', '2026-11-26 17:54:16.693011+00', 0, 'successful', '', 'artifacts/delete-purged', '["UPID:pve1:0000A:0000B:0000C:qmclone:9000:smith@pve!job:"]');
INSERT INTO public.runs VALUES (9, 15, 'delete-purged-local', 1, 'delete.yml', '2026-11-26 17:54:16.73883+00', '2026-11-26 17:54:16.744672+00', 0, 'successful', '', 'artifacts/delete-purged-local', '["UPID:pve1:0000A:0000B:0000C:qmclone:9000:smith@pve!job:"]');
INSERT INTO public.runs VALUES (10, 16, 'create-purge-now', 1, 'create.yml', '2026-11-26 17:54:16.776605+00', '2026-11-26 17:54:16.789802+00', 0, 'successful', '', 'artifacts/create-purge-now', '["UPID:pve1:0000A:0000B:0000C:qmclone:9000:smith@pve!job:"]');
INSERT INTO public.runs VALUES (11, 17, 'delete-purge-now', 1, 'delete.yml', '2026-11-26 17:54:16.822892+00', '2026-11-26 17:54:16.832123+00', 0, 'successful', '', 'artifacts/delete-purge-now', '["UPID:pve1:0000A:0000B:0000C:qmclone:9000:smith@pve!job:"]');
INSERT INTO public.runs VALUES (12, 19, 'create-later', 1, 'create.yml', '2026-11-26 17:54:16.87561+00', '2026-11-26 17:54:16.887673+00', 0, 'successful', '', 'artifacts/create-later', '["UPID:pve1:0000A:0000B:0000C:qmclone:9000:smith@pve!job:"]');
INSERT INTO public.runs VALUES (13, 20, 'delete-later', 1, 'delete.yml', '2026-11-26 17:54:16.930848+00', '2026-11-26 17:54:16.937893+00', 0, 'successful', '', 'artifacts/delete-later', '["UPID:pve1:0000A:0000B:0000C:qmclone:9000:smith@pve!job:"]');
INSERT INTO public.runs VALUES (14, 21, 'create-cloning', 1, 'create.yml', '2026-11-26 17:54:16.989984+00', NULL, NULL, NULL, NULL, NULL, NULL);
INSERT INTO public.runs VALUES (15, 22, 'create-cancelled', 1, 'create.yml', '2026-11-26 17:54:17.082591+00', NULL, NULL, NULL, NULL, NULL, NULL);
SELECT pg_catalog.setval('public.audit_id_seq', 2, true);
SELECT pg_catalog.setval('public.jobs_id_seq', 29, true);
SELECT pg_catalog.setval('public.mappings_id_seq', 10, true);
SELECT pg_catalog.setval('public.runs_id_seq', 15, true);
ALTER TABLE ONLY public.alembic_version
    ADD CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num);
ALTER TABLE ONLY public.audit
    ADD CONSTRAINT audit_pkey PRIMARY KEY (id);
ALTER TABLE ONLY public.critical_jobs
    ADD CONSTRAINT critical_jobs_pkey PRIMARY KEY (name);
ALTER TABLE ONLY public.jobs
    ADD CONSTRAINT jobs_fulcrum_id_key UNIQUE (fulcrum_id);
ALTER TABLE ONLY public.jobs
    ADD CONSTRAINT jobs_pkey PRIMARY KEY (id);
ALTER TABLE ONLY public.mappings
    ADD CONSTRAINT mappings_pkey PRIMARY KEY (id);
ALTER TABLE ONLY public.nodes
    ADD CONSTRAINT nodes_pkey PRIMARY KEY (id);
ALTER TABLE ONLY public.runs
    ADD CONSTRAINT runs_ident_key UNIQUE (ident);
ALTER TABLE ONLY public.runs
    ADD CONSTRAINT runs_pkey PRIMARY KEY (id);
CREATE INDEX ix_audit_subject ON public.audit USING btree (subject_kind, subject_id);
CREATE INDEX ix_jobs_ended ON public.jobs USING btree (finished_at, status) WHERE ((status)::text = ANY ((ARRAY['completed'::character varying, 'failed'::character varying])::text[]));
CREATE UNIQUE INDEX ix_jobs_one_processing_per_service ON public.jobs USING btree (service_id) WHERE ((status)::text = 'processing'::text);
CREATE INDEX ix_jobs_service ON public.jobs USING btree (service_id);
CREATE INDEX ix_jobs_to_claim ON public.jobs USING btree (priority DESC, core_created_at, id) WHERE ((status)::text = 'pending'::text);
CREATE INDEX ix_jobs_to_report ON public.jobs USING btree (finished_at) WHERE ((report_state)::text = 'due'::text);
CREATE UNIQUE INDEX ix_mappings_one_per_service ON public.mappings USING btree (service_id) WHERE ((state)::text <> 'deleted'::text);
CREATE UNIQUE INDEX ix_mappings_one_per_vmid ON public.mappings USING btree (cluster, vmid) WHERE ((state)::text <> 'deleted'::text);
CREATE INDEX ix_runs_job ON public.runs USING btree (job_id);
CREATE INDEX ix_runs_started ON public.runs USING btree (started_at);
CREATE TRIGGER audit_keeps_all BEFORE TRUNCATE ON public.audit FOR EACH STATEMENT EXECUTE FUNCTION public.audit_refuse();
CREATE TRIGGER audit_keeps_rows BEFORE DELETE OR UPDATE ON public.audit FOR EACH ROW EXECUTE FUNCTION public.audit_refuse();
ALTER TABLE ONLY public.runs
    ADD CONSTRAINT runs_job_id_fkey FOREIGN KEY (job_id) REFERENCES public.jobs(id) ON DELETE CASCADE;
