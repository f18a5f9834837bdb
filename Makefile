# make demo      installs what is needed, then kills a pair's active gateway ten times under traffic
# make test      what CI runs: unit tests, fuzz seeds, integration in short form
# make acceptance  every scenario at full length, with its figures
# make interop   every test against a peer; writes docs/interop.md
# make sim SEEDS=n  n simulated clusters; make sim SEED=s replays one (HELP=1 tells more)
# make planted   plants bugs, and counts the schedules that it takes to find each

GO ?= go
FUZZTIME ?= 1m
STATICCHECK = honnef.co/go/tools/cmd/staticcheck@v0.8.2
PROTOC_GEN_GO = google.golang.org/protobuf/cmd/protoc-gen-go@v1.36.11
PROTOC_GEN_GO_GRPC = google.golang.org/grpc/cmd/protoc-gen-go-grpc@v1.6.2

# Scenarios time real processes: one at a time, and apart from the unit tests.
UNIT = $(shell $(GO) list ./... | grep -v '/integration')

.PHONY: all build deps test acceptance interop race lint fuzz sim planted demo bench proto clean

all: build

build:
	CGO_ENABLED=0 $(GO) build -trimpath -o bin/tandem ./cmd/tandem

deps:
	scripts/deps.sh

test: build
	$(GO) vet ./...
	$(GO) test -short -timeout 10m $(UNIT)
	$(GO) test -short -timeout 20m -p 1 -count 1 ./integration/...

acceptance: build
	$(GO) test -timeout 60m $(UNIT)
	$(GO) test -timeout 120m -p 1 -count 1 -v ./integration/...

# What was proved against which peer, with the versions that the peers tell.
interop: build
	TANDEM_BINARY=$(CURDIR)/bin/tandem $(GO) run ./internal/interop/generate

race:
	$(GO) test -race -short -timeout 20m $(UNIT)

lint:
	@files="$$(gofmt -l $$(git ls-files '*.go'))"; test -z "$$files" || { echo "gofmt: $$files"; exit 1; }
	$(GO) vet ./...
	$(GO) vet -tags breakpoints ./internal/daemon ./cmd/tandem
	$(GO) vet -tags nextproto ./cluster/fsm ./sync/stream ./internal/daemon ./cmd/tandem
	$(GO) run $(STATICCHECK) ./...

# Every fuzz target for FUZZTIME each.
fuzz:
	GO="$(GO)" scripts/fuzz.sh $(FUZZTIME)

# Seeded simulation of whole clusters: docs/simulation.md.
sim:
	CGO_ENABLED=0 $(GO) build -o bin/simulate ./internal/sim/simulate
	bin/simulate $(if $(HELP),--help) $(if $(SEEDS),--seeds $(SEEDS)) $(if $(FARM_SEEDS),--farm-seeds $(FARM_SEEDS)) $(if $(FARM_SEED),--farm-seed $(FARM_SEED)) \
		$(if $(VCLUSTER_SEEDS),--vcluster-seeds $(VCLUSTER_SEEDS)) $(if $(VCLUSTER_SEED),--vcluster-seed $(VCLUSTER_SEED)) \
		$(if $(FACING_SEEDS),--facing-seeds $(FACING_SEEDS)) $(if $(FACING_SEED),--facing-seed $(FACING_SEED)) $(if $(FROM),--from $(FROM)) $(if $(REAL),--real $(REAL)) \
		$(if $(SEED),--seed $(SEED)) $(if $(CRASH),--crash "$(CRASH)") $(if $(SCHEDULE),--schedule $(SCHEDULE)) \
		$(if $(OUT),--out $(OUT)) $(if $(JSON),--json $(JSON))

# Bugs planted into copies of the tree, and how many schedules the simulation needs to
# find each: internal/sim/planted.
planted:
	GO="$(GO)" scripts/planted.sh $(if $(LIMIT),--limit $(LIMIT)) $(PLANTED)

demo: deps build
	bin/tandem lab run examples/pair

bench:
	$(GO) test -run '^$$' -bench . -benchmem $(UNIT)
	$(GO) test -run '^$$' -bench . -benchtime 1x -timeout 30m ./integration/...

proto:
	GOBIN=$(CURDIR)/bin/gen $(GO) install $(PROTOC_GEN_GO)
	GOBIN=$(CURDIR)/bin/gen $(GO) install $(PROTOC_GEN_GO_GRPC)
	PATH="$(CURDIR)/bin/gen:$$PATH" protoc -I proto --go_out=. --go_opt=module=tandem --go-grpc_out=. --go-grpc_opt=module=tandem proto/*/*.proto

clean:
	rm -rf bin out
