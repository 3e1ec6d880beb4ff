BEGIN TRANSACTION;
CREATE TABLE alembic_version (
	version_num VARCHAR(32) NOT NULL, 
	CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num)
);
INSERT INTO "alembic_version" VALUES('0001');
CREATE TABLE critical_jobs (
	name VARCHAR(40) NOT NULL, 
	interval_s DOUBLE NOT NULL, 
	due_at DATETIME, 
	last_started_at DATETIME, 
	last_finished_at DATETIME, 
	last_ok_at DATETIME, 
	last_error TEXT, 
	failures INTEGER NOT NULL, 
	runs INTEGER NOT NULL, 
	PRIMARY KEY (name)
);
INSERT INTO "critical_jobs" VALUES('Heartbeat',10.0,'2026-11-25 10:50:38.550000','2026-11-25 10:50:30.524273','2026-11-25 10:50:30.554890',NULL,'FulcrumUnavailable: PUT /agents/me/status: HTTP 503',1,1);
CREATE TABLE jobs (
	id INTEGER NOT NULL, 
	fulcrum_id VARCHAR(36) NOT NULL, 
	service_id VARCHAR(36), 
	group_id VARCHAR(36), 
	action VARCHAR(100) NOT NULL, 
	params JSON, 
	service JSON, 
	defect TEXT, 
	priority INTEGER NOT NULL, 
	status VARCHAR(20) NOT NULL, 
	attempt INTEGER NOT NULL, 
	crashes INTEGER NOT NULL, 
	cancel_requested BOOLEAN NOT NULL, 
	available_at DATETIME, 
	core_created_at DATETIME NOT NULL, 
	deadline_at DATETIME NOT NULL, 
	received_at DATETIME NOT NULL, 
	owner VARCHAR(64), 
	lease_until DATETIME, 
	epoch INTEGER NOT NULL, 
	claim_sent_at DATETIME, 
	claimed_at DATETIME, 
	started_at DATETIME, 
	finished_at DATETIME, 
	reported_at DATETIME, 
	report_state VARCHAR(20) NOT NULL, 
	report_attempts INTEGER NOT NULL, 
	report_after DATETIME, 
	report_note TEXT, 
	error_code VARCHAR(40), 
	error_message TEXT, 
	result JSON, 
	run_ident VARCHAR(64), 
	PRIMARY KEY (id), 
	UNIQUE (fulcrum_id)
);
INSERT INTO "jobs" VALUES(1,'70d43b6d-f9c9-46ad-ba0f-cfb2d12cd67a','bb8f6b32-05f1-4f80-8a42-20968a84a119',NULL,'create',NULL,'{"name": "reported", "properties": {"cores": 2, "memoryMb": 2048, "diskGb": 10, "image": "debian-12"}}',NULL,9,'completed',1,0,0,NULL,'2026-01-01 00:00:00.000000','2026-01-01 00:05:00.000000','2026-11-25 10:50:30.556716','node-of-then',NULL,1,'2026-11-25 10:50:30.590401','2026-11-25 10:50:30.596786','2026-11-25 10:50:30.605597','2026-11-25 10:50:30.622130','2026-11-25 10:50:30.628898','reported',0,NULL,NULL,NULL,NULL,'{"vmid": 100008, "node": "pve1", "status": "stopped", "mac_address": "BC:24:11:00:00:01"}','create-reported');
INSERT INTO "jobs" VALUES(2,'86059067-9edd-4608-9dde-39861dd61e6e','5bc3d51b-edfd-41b8-a691-b66c94834c85',NULL,'create',NULL,'{"name": "due", "properties": {"cores": 2, "memoryMb": 2048, "diskGb": 10, "image": "debian-12"}}',NULL,9,'completed',1,0,0,NULL,'2026-01-01 00:00:00.000000','2026-01-01 00:05:00.000000','2026-11-25 10:50:30.630080','node-of-then',NULL,1,'2026-11-25 10:50:30.664130','2026-11-25 10:50:30.665284','2026-11-25 10:50:30.672460','2026-11-25 10:50:30.680241',NULL,'due',0,NULL,NULL,NULL,NULL,'{"vmid": 100003, "node": "pve1", "status": "stopped", "mac_address": "BC:24:11:00:00:01"}','create-due');
INSERT INTO "jobs" VALUES(3,'aed67d98-bff2-4c2f-bf06-0034a6f78f72','6b2d0d5c-5cde-46a4-9ca9-d6bf4fc52c52',NULL,'create',NULL,'{"name": "failed", "properties": {"cores": 2, "memoryMb": 2048, "diskGb": 10, "image": "debian-12"}}',NULL,9,'failed',1,0,0,NULL,'2026-01-01 00:00:00.000000','2026-01-01 00:05:00.000000','2026-11-25 10:50:30.683096','node-of-then',NULL,1,NULL,'2026-11-25 10:50:30.709280',NULL,'2026-11-25 10:50:30.710102','2026-11-25 10:50:30.715237','orphaned',0,NULL,'HTTP 400','CAPACITY','CAPACITY: no node has room',NULL,NULL);
INSERT INTO "jobs" VALUES(4,'627f1161-2a0c-475c-8c04-995adde739c7','e1f26f63-bef6-42f8-bc96-4c265e772748',NULL,'create',NULL,'{"name": "failed-due", "properties": {"cores": 2, "memoryMb": 2048, "diskGb": 10, "image": "debian-12"}}',NULL,9,'failed',1,0,0,NULL,'2026-01-01 00:00:00.000000','2026-01-01 00:05:00.000000','2026-11-25 10:50:30.715792','node-of-then',NULL,1,NULL,'2026-11-25 10:50:30.741970',NULL,'2026-11-25 10:50:30.747093',NULL,'due',0,NULL,NULL,'CAPACITY','CAPACITY: no node has room',NULL,NULL);
INSERT INTO "jobs" VALUES(5,'1593b695-9261-4523-b565-8cd48b0957f8','6aed1a49-b2b7-4539-b929-a89ab37ce4ac',NULL,'create',NULL,'{"name": "deleted", "properties": {"cores": 2, "memoryMb": 2048, "diskGb": 10, "image": "debian-12"}}',NULL,9,'completed',1,0,0,NULL,'2026-01-01 00:00:00.000000','2026-01-01 00:05:00.000000','2026-11-25 10:50:30.748380','node-of-then',NULL,1,'2026-11-25 10:50:30.770784','2026-11-25 10:50:30.776418','2026-11-25 10:50:30.778178','2026-11-25 10:50:30.785147','2026-11-25 10:50:30.786269','reported',0,NULL,NULL,NULL,NULL,'{"vmid": 100050, "status": "absent"}','create-deleted');
INSERT INTO "jobs" VALUES(6,'e0b561b2-44d0-4cdb-8df9-3701fbcce14d','2a848375-5a79-4f68-868d-be7e21b6fb1a',NULL,'create',NULL,'{"name": "orphaned", "properties": {"cores": 2, "memoryMb": 2048, "diskGb": 10, "image": "debian-12"}}',NULL,9,'completed',1,0,0,NULL,'2026-01-01 00:00:00.000000','2026-01-01 00:05:00.000000','2026-11-25 10:50:30.791249','node-of-then',NULL,1,'2026-11-25 10:50:30.822139','2026-11-25 10:50:30.823262','2026-11-25 10:50:30.824983','2026-11-25 10:50:30.830938','2026-11-25 10:50:30.832051','reported',0,NULL,NULL,NULL,NULL,'{"vmid": 100051, "status": "absent"}','create-orphaned');
INSERT INTO "jobs" VALUES(7,'0dfe1fa1-3ee0-4587-a5af-4e77fb2deae2','bbf75bc6-5691-4cab-81e2-80820fdf9a7c',NULL,'create',NULL,'{"name": "cloning", "properties": {"cores": 2, "memoryMb": 2048, "diskGb": 10, "image": "debian-12"}}',NULL,9,'processing',1,0,0,NULL,'2026-01-01 00:00:00.000000','2026-01-01 00:05:00.000000','2026-11-25 10:50:30.832529','node-of-then','2026-11-25 10:51:00.850000',1,'2026-11-25 10:50:30.855971','2026-11-25 10:50:30.857024','2026-11-25 10:50:30.858648',NULL,NULL,'none',0,NULL,NULL,NULL,NULL,NULL,'create-cloning');
INSERT INTO "jobs" VALUES(8,'dac3321f-34ea-4582-b309-61fb7b6b3810','5d092c4c-05f4-41f3-a774-bee33cae0523',NULL,'create',NULL,'{"name": "cancelled", "properties": {"cores": 2, "memoryMb": 2048, "diskGb": 10, "image": "debian-12"}}',NULL,9,'processing',1,0,1,NULL,'2026-01-01 00:00:00.000000','2026-01-01 00:05:00.000000','2026-11-25 10:50:30.864897','node-of-then','2026-11-25 10:51:00.890000',1,'2026-11-25 10:50:30.896123','2026-11-25 10:50:30.897180','2026-11-25 10:50:30.902032',NULL,NULL,'none',0,NULL,NULL,NULL,NULL,NULL,'create-cancelled');
INSERT INTO "jobs" VALUES(9,'4e32af79-1b0a-4aa4-9bd7-91d9a1a56c13','58592db9-b54f-48f7-baea-2a5b0de6a5c5',NULL,'create',NULL,'{"name": "put-back", "properties": {"cores": 2, "memoryMb": 2048, "diskGb": 10, "image": "debian-12"}}',NULL,9,'pending',1,0,0,'2026-11-25 10:50:35.929000','2026-01-01 00:00:00.000000','2026-01-01 00:05:00.000000','2026-11-25 10:50:30.905971',NULL,NULL,1,NULL,NULL,NULL,NULL,NULL,'none',0,NULL,NULL,NULL,'PVE_UNREACHABLE: no connection',NULL,NULL);
INSERT INTO "jobs" VALUES(10,'2b2e424f-967a-450e-bb4e-eee4c9261e35','8343fb8b-f9f6-44dc-80de-45f6eda33c5f',NULL,'create',NULL,'{"name": "claim-not-sent", "properties": {"cores": 2, "memoryMb": 2048, "diskGb": 10, "image": "debian-12"}}',NULL,9,'processing',1,0,0,NULL,'2026-01-01 00:00:00.000000','2026-01-01 00:05:00.000000','2026-11-25 10:50:30.929884','node-of-then','2026-11-25 10:51:00.955000',1,NULL,NULL,NULL,NULL,NULL,'none',0,NULL,NULL,NULL,NULL,NULL,NULL);
INSERT INTO "jobs" VALUES(11,'05dd6893-1190-4549-9c3c-ba8d78a8e683','f5cbd756-5acc-4020-9e22-c2dd02662b50',NULL,'start','{"text": "\u00fcml\u00e4ut \ud83d\ude42", "number": 1.5}',NULL,NULL,1,'pending',0,0,0,NULL,'2026-01-01 01:40:00.000000','2026-01-01 01:45:00.000000','2026-11-25 10:50:30.957173',NULL,NULL,0,NULL,NULL,NULL,NULL,NULL,'none',0,NULL,NULL,NULL,NULL,NULL,NULL);
INSERT INTO "jobs" VALUES(12,'eb5bacdc-1529-4de9-936c-267b175ea426','98f04628-2b4a-429b-933f-872f3c1171d4',NULL,'create',NULL,NULL,'action: missing',1,'pending',0,0,0,NULL,'2026-01-01 01:41:00.000000','2026-01-01 01:46:00.000000','2026-11-25 10:50:30.958150',NULL,NULL,0,NULL,NULL,NULL,NULL,NULL,'none',0,NULL,NULL,NULL,NULL,NULL,NULL);
CREATE TABLE mappings (
	id INTEGER NOT NULL, 
	service_id VARCHAR(36) NOT NULL, 
	cluster VARCHAR(100) NOT NULL, 
	vmid INTEGER NOT NULL, 
	node VARCHAR(100), 
	name VARCHAR(100) NOT NULL, 
	marker VARCHAR(100) NOT NULL, 
	mac_address VARCHAR(20), 
	state VARCHAR(20) NOT NULL, 
	note TEXT, 
	created_at DATETIME NOT NULL, 
	updated_at DATETIME NOT NULL, 
	deleted_at DATETIME, 
	PRIMARY KEY (id)
);
INSERT INTO "mappings" VALUES(1,'bb8f6b32-05f1-4f80-8a42-20968a84a119','pve',100008,'pve1','reported-100008','smith-uid=bb8f6b32-05f1-4f80-8a42-20968a84a119','BC:24:11:00:00:01','active',NULL,'2026-11-25 10:50:30.602927','2026-11-25 10:50:30.620626',NULL);
INSERT INTO "mappings" VALUES(2,'5bc3d51b-edfd-41b8-a691-b66c94834c85','pve',100003,'pve1','due-100003','smith-uid=5bc3d51b-edfd-41b8-a691-b66c94834c85','BC:24:11:00:00:01','active',NULL,'2026-11-25 10:50:30.666190','2026-11-25 10:50:30.679489',NULL);
INSERT INTO "mappings" VALUES(3,'6aed1a49-b2b7-4539-b929-a89ab37ce4ac','pve',100050,NULL,'deleted-100050','smith-uid=6aed1a49-b2b7-4539-b929-a89ab37ce4ac',NULL,'deleted',NULL,'2026-11-25 10:50:30.777373','2026-11-25 10:50:30.783963','2026-11-25 10:50:30.783963');
INSERT INTO "mappings" VALUES(4,'2a848375-5a79-4f68-868d-be7e21b6fb1a','pve',100051,NULL,'orphaned-100051','smith-uid=2a848375-5a79-4f68-868d-be7e21b6fb1a',NULL,'orphaned','vanished','2026-11-25 10:50:30.824165','2026-11-25 10:50:30.826280',NULL);
INSERT INTO "mappings" VALUES(5,'bbf75bc6-5691-4cab-81e2-80820fdf9a7c','pve',100060,NULL,'cloning-100060','smith-uid=bbf75bc6-5691-4cab-81e2-80820fdf9a7c',NULL,'reserved',NULL,'2026-11-25 10:50:30.857915','2026-11-25 10:50:30.857915',NULL);
INSERT INTO "mappings" VALUES(6,'5d092c4c-05f4-41f3-a774-bee33cae0523','pve',100061,NULL,'cancelled-100061','smith-uid=5d092c4c-05f4-41f3-a774-bee33cae0523',NULL,'reserved',NULL,'2026-11-25 10:50:30.898083','2026-11-25 10:50:30.898083',NULL);
CREATE TABLE nodes (
	id VARCHAR(64) NOT NULL, 
	host VARCHAR(255) NOT NULL, 
	pid INTEGER NOT NULL, 
	version VARCHAR(40) NOT NULL, 
	started_at DATETIME NOT NULL, 
	seen_at DATETIME NOT NULL, 
	stopped_at DATETIME, 
	stop_reason VARCHAR(40), 
	concurrency_wanted INTEGER NOT NULL, 
	concurrency INTEGER NOT NULL, 
	draining BOOLEAN NOT NULL, 
	PRIMARY KEY (id)
);
INSERT INTO "nodes" VALUES('node-of-then','pve-ops',7,'then','2026-11-25 10:50:30.500029','2026-11-25 10:50:30.500029',NULL,NULL,8,8,0);
CREATE TABLE runs (
	id INTEGER NOT NULL, 
	job_id INTEGER NOT NULL, 
	ident VARCHAR(64) NOT NULL, 
	attempt INTEGER NOT NULL, 
	playbook VARCHAR(100) NOT NULL, 
	started_at DATETIME NOT NULL, 
	ended_at DATETIME, 
	rc INTEGER, 
	status VARCHAR(20), 
	reason TEXT, 
	folder TEXT, 
	upids JSON, 
	PRIMARY KEY (id), 
	FOREIGN KEY(job_id) REFERENCES jobs (id) ON DELETE CASCADE, 
	UNIQUE (ident)
);
INSERT INTO "runs" VALUES(1,1,'create-reported',1,'create.yml','2026-11-25 10:50:30.605597','2026-11-25 10:50:30.614745',0,'successful','','artifacts/create-reported','["UPID:pve1:0000A:0000B:0000C:qmclone:9000:smith@pve!job:"]');
INSERT INTO "runs" VALUES(2,2,'create-due',1,'create.yml','2026-11-25 10:50:30.672460','2026-11-25 10:50:30.674428',0,'successful','','artifacts/create-due','["UPID:pve1:0000A:0000B:0000C:qmclone:9000:smith@pve!job:"]');
INSERT INTO "runs" VALUES(3,5,'create-deleted',1,'create.yml','2026-11-25 10:50:30.778178',NULL,NULL,NULL,NULL,NULL,NULL);
INSERT INTO "runs" VALUES(4,6,'create-orphaned',1,'create.yml','2026-11-25 10:50:30.824983',NULL,NULL,NULL,NULL,NULL,NULL);
INSERT INTO "runs" VALUES(5,7,'create-cloning',1,'create.yml','2026-11-25 10:50:30.858648',NULL,NULL,NULL,NULL,NULL,NULL);
INSERT INTO "runs" VALUES(6,8,'create-cancelled',1,'create.yml','2026-11-25 10:50:30.902032',NULL,NULL,NULL,NULL,NULL,NULL);
CREATE UNIQUE INDEX ix_jobs_one_processing_per_service ON jobs (service_id) WHERE status = 'processing';
CREATE INDEX ix_jobs_to_claim ON jobs (priority DESC, core_created_at, id) WHERE status = 'pending';
CREATE INDEX ix_jobs_service ON jobs (service_id);
CREATE INDEX ix_jobs_ended ON jobs (finished_at, status) WHERE status IN ('completed', 'failed');
CREATE INDEX ix_jobs_to_report ON jobs (finished_at) WHERE report_state = 'due';
CREATE UNIQUE INDEX ix_mappings_one_per_service ON mappings (service_id) WHERE state != 'deleted';
CREATE UNIQUE INDEX ix_mappings_one_per_vmid ON mappings (cluster, vmid) WHERE state != 'deleted';
CREATE INDEX ix_runs_job ON runs (job_id);
CREATE INDEX ix_runs_started ON runs (started_at);
COMMIT;
