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
SET default_tablespace = '';
SET default_table_access_method = heap;
CREATE TABLE public.alembic_version (
    version_num character varying(32) NOT NULL
);
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
    run_ident character varying(64)
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
    deleted_at timestamp with time zone
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
ALTER TABLE ONLY public.jobs ALTER COLUMN id SET DEFAULT nextval('public.jobs_id_seq'::regclass);
ALTER TABLE ONLY public.mappings ALTER COLUMN id SET DEFAULT nextval('public.mappings_id_seq'::regclass);
ALTER TABLE ONLY public.runs ALTER COLUMN id SET DEFAULT nextval('public.runs_id_seq'::regclass);
INSERT INTO public.alembic_version VALUES ('0001');
INSERT INTO public.critical_jobs VALUES ('Heartbeat', 10, '2026-11-25 10:50:40.351294+00', '2026-11-25 10:50:32.339452+00', '2026-11-25 10:50:32.351639+00', NULL, 'FulcrumUnavailable: PUT /agents/me/status: HTTP 503', 1, 1);
INSERT INTO public.jobs VALUES (1, '29728ebc-3f96-4351-839d-8e61448cf3f3', '3bb0f6e5-ac73-4241-a219-8a849bfb4c3a', NULL, 'create', NULL, '{"name": "reported", "properties": {"cores": 2, "memoryMb": 2048, "diskGb": 10, "image": "debian-12"}}', NULL, 9, 'completed', 1, 0, false, NULL, '2026-01-01 00:00:00+00', '2026-01-01 00:05:00+00', '2026-11-25 10:50:32.353591+00', 'node-of-then', NULL, 1, '2026-11-25 10:50:32.382159+00', '2026-11-25 10:50:32.384506+00', '2026-11-25 10:50:32.389336+00', '2026-11-25 10:50:32.400634+00', '2026-11-25 10:50:32.403099+00', 'reported', 0, NULL, NULL, NULL, NULL, '{"vmid": 100008, "node": "pve1", "status": "stopped", "mac_address": "BC:24:11:00:00:01"}', 'create-reported');
INSERT INTO public.jobs VALUES (2, '07e22e8d-dc2c-4bb3-b7e1-3de76bb70fb2', 'cb3f7c3f-1693-47aa-bb7e-4fe468ff2a41', NULL, 'create', NULL, '{"name": "due", "properties": {"cores": 2, "memoryMb": 2048, "diskGb": 10, "image": "debian-12"}}', NULL, 9, 'completed', 1, 0, false, NULL, '2026-01-01 00:00:00+00', '2026-01-01 00:05:00+00', '2026-11-25 10:50:32.4042+00', 'node-of-then', NULL, 1, '2026-11-25 10:50:32.417158+00', '2026-11-25 10:50:32.418499+00', '2026-11-25 10:50:32.420842+00', '2026-11-25 10:50:32.424452+00', NULL, 'due', 0, NULL, NULL, NULL, NULL, '{"vmid": 100003, "node": "pve1", "status": "stopped", "mac_address": "BC:24:11:00:00:01"}', 'create-due');
INSERT INTO public.jobs VALUES (3, 'a8373fe2-a401-4adf-a491-05f915eeafa3', 'c0c8f6c0-8e9b-4a47-8234-4f60f90d1fe4', NULL, 'create', NULL, '{"name": "failed", "properties": {"cores": 2, "memoryMb": 2048, "diskGb": 10, "image": "debian-12"}}', NULL, 9, 'failed', 1, 0, false, NULL, '2026-01-01 00:00:00+00', '2026-01-01 00:05:00+00', '2026-11-25 10:50:32.425568+00', 'node-of-then', NULL, 1, NULL, '2026-11-25 10:50:32.43768+00', NULL, '2026-11-25 10:50:32.441552+00', '2026-11-25 10:50:32.443604+00', 'orphaned', 0, NULL, 'HTTP 400', 'CAPACITY', 'CAPACITY: no node has room', NULL, NULL);
INSERT INTO public.jobs VALUES (4, 'b9305dc1-55c0-4ab8-9726-c4a8fd769d76', 'c28b06cc-db5d-42df-a15e-d71991969806', NULL, 'create', NULL, '{"name": "failed-due", "properties": {"cores": 2, "memoryMb": 2048, "diskGb": 10, "image": "debian-12"}}', NULL, 9, 'failed', 1, 0, false, NULL, '2026-01-01 00:00:00+00', '2026-01-01 00:05:00+00', '2026-11-25 10:50:32.444589+00', 'node-of-then', NULL, 1, NULL, '2026-11-25 10:50:32.457786+00', NULL, '2026-11-25 10:50:32.458903+00', NULL, 'due', 0, NULL, NULL, 'CAPACITY', 'CAPACITY: no node has room', NULL, NULL);
INSERT INTO public.jobs VALUES (5, '5be08a3b-c59a-4bad-a00f-55075f3c6210', 'dc35e4a2-7771-424c-bdd9-12c335acac67', NULL, 'create', NULL, '{"name": "deleted", "properties": {"cores": 2, "memoryMb": 2048, "diskGb": 10, "image": "debian-12"}}', NULL, 9, 'completed', 1, 0, false, NULL, '2026-01-01 00:00:00+00', '2026-01-01 00:05:00+00', '2026-11-25 10:50:32.459932+00', 'node-of-then', NULL, 1, '2026-11-25 10:50:32.60014+00', '2026-11-25 10:50:32.60127+00', '2026-11-25 10:50:32.608069+00', '2026-11-25 10:50:32.610847+00', '2026-11-25 10:50:32.611969+00', 'reported', 0, NULL, NULL, NULL, NULL, '{"vmid": 100050, "status": "absent"}', 'create-deleted');
INSERT INTO public.jobs VALUES (6, 'cda4c232-115f-486f-9d3a-74968b8f2b0a', 'd21b5a78-bb55-4cc4-a63e-653d6047daec', NULL, 'create', NULL, '{"name": "orphaned", "properties": {"cores": 2, "memoryMb": 2048, "diskGb": 10, "image": "debian-12"}}', NULL, 9, 'completed', 1, 0, false, NULL, '2026-01-01 00:00:00+00', '2026-01-01 00:05:00+00', '2026-11-25 10:50:32.615198+00', 'node-of-then', NULL, 1, '2026-11-25 10:50:32.63658+00', '2026-11-25 10:50:32.637475+00', '2026-11-25 10:50:32.642932+00', '2026-11-25 10:50:32.655067+00', '2026-11-25 10:50:32.656786+00', 'reported', 0, NULL, NULL, NULL, NULL, '{"vmid": 100051, "status": "absent"}', 'create-orphaned');
INSERT INTO public.jobs VALUES (7, 'fcf161f2-ef7a-463d-bb94-945b929dc5ac', 'b7c94f1b-f894-4d53-9c00-76c64bb2ef4f', NULL, 'create', NULL, '{"name": "cloning", "properties": {"cores": 2, "memoryMb": 2048, "diskGb": 10, "image": "debian-12"}}', NULL, 9, 'processing', 1, 0, false, NULL, '2026-01-01 00:00:00+00', '2026-01-01 00:05:00+00', '2026-11-25 10:50:32.657405+00', 'node-of-then', '2026-11-25 10:51:02.674462+00', 1, '2026-11-25 10:50:32.676529+00', '2026-11-25 10:50:32.677507+00', '2026-11-25 10:50:32.679501+00', NULL, NULL, 'none', 0, NULL, NULL, NULL, NULL, NULL, 'create-cloning');
INSERT INTO public.jobs VALUES (8, 'bcd3d151-e5c3-4975-b10c-724c2c1b4d69', '372b2872-bb2b-4b5d-abd9-2380af1d70e4', NULL, 'create', NULL, '{"name": "cancelled", "properties": {"cores": 2, "memoryMb": 2048, "diskGb": 10, "image": "debian-12"}}', NULL, 9, 'processing', 1, 0, true, NULL, '2026-01-01 00:00:00+00', '2026-01-01 00:05:00+00', '2026-11-25 10:50:32.681211+00', 'node-of-then', '2026-11-25 10:51:02.689818+00', 1, '2026-11-25 10:50:32.690656+00', '2026-11-25 10:50:32.691572+00', '2026-11-25 10:50:32.693399+00', NULL, NULL, 'none', 0, NULL, NULL, NULL, NULL, NULL, 'create-cancelled');
INSERT INTO public.jobs VALUES (9, '1b43eea2-2b39-439a-afd9-a1bd8eba2f9a', '2237e9c5-68e7-4337-908b-035d6f3631d6', NULL, 'create', NULL, '{"name": "put-back", "properties": {"cores": 2, "memoryMb": 2048, "diskGb": 10, "image": "debian-12"}}', NULL, 9, 'pending', 1, 0, false, '2026-11-25 10:50:37.727375+00', '2026-01-01 00:00:00+00', '2026-01-01 00:05:00+00', '2026-11-25 10:50:32.696981+00', NULL, NULL, 1, NULL, NULL, NULL, NULL, NULL, 'none', 0, NULL, NULL, NULL, 'PVE_UNREACHABLE: no connection', NULL, NULL);
INSERT INTO public.jobs VALUES (10, '1bd40433-81fe-43ff-a39e-79b4d4481d07', 'ba26e8ec-012c-4176-bbd6-7bb76c59fda8', NULL, 'create', NULL, '{"name": "claim-not-sent", "properties": {"cores": 2, "memoryMb": 2048, "diskGb": 10, "image": "debian-12"}}', NULL, 9, 'processing', 1, 0, false, NULL, '2026-01-01 00:00:00+00', '2026-01-01 00:05:00+00', '2026-11-25 10:50:32.72853+00', 'node-of-then', '2026-11-25 10:51:02.748071+00', 1, NULL, NULL, NULL, NULL, NULL, 'none', 0, NULL, NULL, NULL, NULL, NULL, NULL);
INSERT INTO public.jobs VALUES (11, '456a505c-0549-48a4-9432-9bf63baa9b23', 'c2ef3a58-b966-4141-9cd1-41d99e556354', NULL, 'start', '{"text": "\u00fcml\u00e4ut \ud83d\ude42", "number": 1.5}', NULL, NULL, 1, 'pending', 0, 0, false, NULL, '2026-01-01 01:40:00+00', '2026-01-01 01:45:00+00', '2026-11-25 10:50:32.749172+00', NULL, NULL, 0, NULL, NULL, NULL, NULL, NULL, 'none', 0, NULL, NULL, NULL, NULL, NULL, NULL);
INSERT INTO public.jobs VALUES (12, 'fd9562f7-4032-45a0-8669-31c8ae623d17', 'aa28a39f-edb6-4381-ba27-ddd2ba3f592a', NULL, 'create', NULL, NULL, 'action: missing', 1, 'pending', 0, 0, false, NULL, '2026-01-01 01:41:00+00', '2026-01-01 01:46:00+00', '2026-11-25 10:50:32.755079+00', NULL, NULL, 0, NULL, NULL, NULL, NULL, NULL, 'none', 0, NULL, NULL, NULL, NULL, NULL, NULL);
INSERT INTO public.mappings VALUES (1, '3bb0f6e5-ac73-4241-a219-8a849bfb4c3a', 'pve', 100008, 'pve1', 'reported-100008', 'smith-uid=3bb0f6e5-ac73-4241-a219-8a849bfb4c3a', 'BC:24:11:00:00:01', 'active', NULL, '2026-11-25 10:50:32.386902+00', '2026-11-25 10:50:32.398915+00', NULL);
INSERT INTO public.mappings VALUES (2, 'cb3f7c3f-1693-47aa-bb7e-4fe468ff2a41', 'pve', 100003, 'pve1', 'due-100003', 'smith-uid=cb3f7c3f-1693-47aa-bb7e-4fe468ff2a41', 'BC:24:11:00:00:01', 'active', NULL, '2026-11-25 10:50:32.419689+00', '2026-11-25 10:50:32.423645+00', NULL);
INSERT INTO public.mappings VALUES (3, 'dc35e4a2-7771-424c-bdd9-12c335acac67', 'pve', 100050, NULL, 'deleted-100050', 'smith-uid=dc35e4a2-7771-424c-bdd9-12c335acac67', NULL, 'deleted', NULL, '2026-11-25 10:50:32.606978+00', '2026-11-25 10:50:32.609848+00', '2026-11-25 10:50:32.609848+00');
INSERT INTO public.mappings VALUES (4, 'd21b5a78-bb55-4cc4-a63e-653d6047daec', 'pve', 100051, NULL, 'orphaned-100051', 'smith-uid=d21b5a78-bb55-4cc4-a63e-653d6047daec', NULL, 'orphaned', 'vanished', '2026-11-25 10:50:32.640252+00', '2026-11-25 10:50:32.6487+00', NULL);
INSERT INTO public.mappings VALUES (5, 'b7c94f1b-f894-4d53-9c00-76c64bb2ef4f', 'pve', 100060, NULL, 'cloning-100060', 'smith-uid=b7c94f1b-f894-4d53-9c00-76c64bb2ef4f', NULL, 'reserved', NULL, '2026-11-25 10:50:32.678553+00', '2026-11-25 10:50:32.678553+00', NULL);
INSERT INTO public.mappings VALUES (6, '372b2872-bb2b-4b5d-abd9-2380af1d70e4', 'pve', 100061, NULL, 'cancelled-100061', 'smith-uid=372b2872-bb2b-4b5d-abd9-2380af1d70e4', NULL, 'reserved', NULL, '2026-11-25 10:50:32.692582+00', '2026-11-25 10:50:32.692582+00', NULL);
INSERT INTO public.nodes VALUES ('node-of-then', 'pve-ops', 7, 'then', '2026-11-25 10:50:32.339132+00', '2026-11-25 10:50:32.339132+00', NULL, NULL, 8, 8, false);
INSERT INTO public.runs VALUES (1, 1, 'create-reported', 1, 'create.yml', '2026-11-25 10:50:32.389336+00', '2026-11-25 10:50:32.396701+00', 0, 'successful', '', 'artifacts/create-reported', '["UPID:pve1:0000A:0000B:0000C:qmclone:9000:smith@pve!job:"]');
INSERT INTO public.runs VALUES (2, 2, 'create-due', 1, 'create.yml', '2026-11-25 10:50:32.420842+00', '2026-11-25 10:50:32.422861+00', 0, 'successful', '', 'artifacts/create-due', '["UPID:pve1:0000A:0000B:0000C:qmclone:9000:smith@pve!job:"]');
INSERT INTO public.runs VALUES (3, 5, 'create-deleted', 1, 'create.yml', '2026-11-25 10:50:32.608069+00', NULL, NULL, NULL, NULL, NULL, NULL);
INSERT INTO public.runs VALUES (4, 6, 'create-orphaned', 1, 'create.yml', '2026-11-25 10:50:32.642932+00', NULL, NULL, NULL, NULL, NULL, NULL);
INSERT INTO public.runs VALUES (5, 7, 'create-cloning', 1, 'create.yml', '2026-11-25 10:50:32.679501+00', NULL, NULL, NULL, NULL, NULL, NULL);
INSERT INTO public.runs VALUES (6, 8, 'create-cancelled', 1, 'create.yml', '2026-11-25 10:50:32.693399+00', NULL, NULL, NULL, NULL, NULL, NULL);
SELECT pg_catalog.setval('public.jobs_id_seq', 12, true);
SELECT pg_catalog.setval('public.mappings_id_seq', 6, true);
SELECT pg_catalog.setval('public.runs_id_seq', 6, true);
ALTER TABLE ONLY public.alembic_version
    ADD CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num);
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
CREATE INDEX ix_jobs_ended ON public.jobs USING btree (finished_at, status) WHERE ((status)::text = ANY ((ARRAY['completed'::character varying, 'failed'::character varying])::text[]));
CREATE UNIQUE INDEX ix_jobs_one_processing_per_service ON public.jobs USING btree (service_id) WHERE ((status)::text = 'processing'::text);
CREATE INDEX ix_jobs_service ON public.jobs USING btree (service_id);
CREATE INDEX ix_jobs_to_claim ON public.jobs USING btree (priority DESC, core_created_at, id) WHERE ((status)::text = 'pending'::text);
CREATE INDEX ix_jobs_to_report ON public.jobs USING btree (finished_at) WHERE ((report_state)::text = 'due'::text);
CREATE UNIQUE INDEX ix_mappings_one_per_service ON public.mappings USING btree (service_id) WHERE ((state)::text <> 'deleted'::text);
CREATE UNIQUE INDEX ix_mappings_one_per_vmid ON public.mappings USING btree (cluster, vmid) WHERE ((state)::text <> 'deleted'::text);
CREATE INDEX ix_runs_job ON public.runs USING btree (job_id);
CREATE INDEX ix_runs_started ON public.runs USING btree (started_at);
ALTER TABLE ONLY public.runs
    ADD CONSTRAINT runs_job_id_fkey FOREIGN KEY (job_id) REFERENCES public.jobs(id) ON DELETE CASCADE;
