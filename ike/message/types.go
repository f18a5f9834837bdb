package message

// ExchangeType as in RFC 7296 §3.1.
type ExchangeType uint8

const (
	IKESAInit     ExchangeType = 34
	IKEAuth       ExchangeType = 35
	CreateChildSA ExchangeType = 36
	Informational ExchangeType = 37
	Intermediate  ExchangeType = 43 // IKE_INTERMEDIATE (RFC 9242)
	FollowupKE    ExchangeType = 44 // IKE_FOLLOWUP_KE (RFC 9370)
)

// PayloadType as in RFC 7296 §3.2.
type PayloadType uint8

const (
	NoNextPayload PayloadType = 0
	TypeSA        PayloadType = 33
	TypeKE        PayloadType = 34
	TypeIDi       PayloadType = 35
	TypeIDr       PayloadType = 36
	TypeCERT      PayloadType = 37
	TypeCERTREQ   PayloadType = 38
	TypeAUTH      PayloadType = 39
	TypeNonce     PayloadType = 40
	TypeNotify    PayloadType = 41
	TypeDelete    PayloadType = 42
	TypeVendorID  PayloadType = 43
	TypeTSi       PayloadType = 44
	TypeTSr       PayloadType = 45
	TypeSK        PayloadType = 46
	TypeCP        PayloadType = 47
	TypeEAP       PayloadType = 48
	TypeSKF       PayloadType = 53
)

// NotifyType as in RFC 7296 §3.10.1 and its registry; below 16384 are errors.
type NotifyType uint16

const (
	UnsupportedCriticalPayload NotifyType = 1
	InvalidIKESPI              NotifyType = 4
	InvalidMajorVersion        NotifyType = 5
	InvalidSyntax              NotifyType = 7
	InvalidMessageID           NotifyType = 9
	InvalidSPI                 NotifyType = 11
	NoProposalChosen           NotifyType = 14
	InvalidKEPayload           NotifyType = 17
	AuthenticationFailed       NotifyType = 24
	SinglePairRequired         NotifyType = 34
	NoAdditionalSAs            NotifyType = 35
	InternalAddressFailure     NotifyType = 36
	FailedCPRequired           NotifyType = 37
	TSUnacceptable             NotifyType = 38
	InvalidSelectors           NotifyType = 39
	UnacceptableAddresses      NotifyType = 40
	UnexpectedNATDetected      NotifyType = 41
	TemporaryFailure           NotifyType = 43
	ChildSANotFound            NotifyType = 44
	StateNotFound              NotifyType = 47 // RFC 9370 §2.2.4

	InitialContact             NotifyType = 16384
	SetWindowSize              NotifyType = 16385
	AdditionalTSPossible       NotifyType = 16386
	IPCompSupported            NotifyType = 16387
	NATDetectionSourceIP       NotifyType = 16388
	NATDetectionDestinationIP  NotifyType = 16389
	Cookie                     NotifyType = 16390
	UseTransportMode           NotifyType = 16391
	HTTPCertLookupSupported    NotifyType = 16392
	RekeySA                    NotifyType = 16393
	ESPTFCPaddingNotSupported  NotifyType = 16394
	NonFirstFragmentsAlso      NotifyType = 16395
	MobikeSupported            NotifyType = 16396
	AdditionalIP4Address       NotifyType = 16397
	AdditionalIP6Address       NotifyType = 16398
	NoAdditionalAddresses      NotifyType = 16399
	UpdateSAAddresses          NotifyType = 16400
	Cookie2                    NotifyType = 16401
	NoNATsAllowed              NotifyType = 16402
	AuthLifetime               NotifyType = 16403
	EAPOnlyAuthentication      NotifyType = 16417
	ChildlessSupported         NotifyType = 16418 // CHILDLESS_IKEV2_SUPPORTED
	RedirectSupported          NotifyType = 16406
	Redirect                   NotifyType = 16407
	RedirectedFrom             NotifyType = 16408
	QCDToken                   NotifyType = 16419 // QUICK_CRASH_DETECTION
	MessageIDSyncSupported     NotifyType = 16420
	ReplayCounterSyncSupported NotifyType = 16421
	MessageIDSync              NotifyType = 16422
	ReplayCounterSync          NotifyType = 16423
	FragmentationSupported     NotifyType = 16430
	SignatureHashAlgorithms    NotifyType = 16431
	UsePPK                     NotifyType = 16435
	PPKIdentity                NotifyType = 16436
	NoPPKAuth                  NotifyType = 16437
	IntermediateSupported      NotifyType = 16438 // INTERMEDIATE_EXCHANGE_SUPPORTED
	AdditionalKeyExchange      NotifyType = 16441

	// Private use (RFC 7296 §3.10.1): between Tandems only, told by their vendor ID.
	TandemNetworkID        NotifyType = 45101 // one octet: the number of the overlay network
	TandemInterfaceAddress NotifyType = 45102 // the tunnel interface's address, 4 or 16 octets; none: it has none
)

// IDType as in RFC 7296 §3.5.
type IDType uint8

const (
	IDIPv4    IDType = 1
	IDFQDN    IDType = 2
	IDRFC822  IDType = 3
	IDIPv6    IDType = 5
	IDDERASN1 IDType = 9
	IDKeyID   IDType = 11
)

// AuthMethod as in RFC 7296 §3.8.
type AuthMethod uint8

const (
	AuthRSA       AuthMethod = 1
	AuthPSK       AuthMethod = 2
	AuthECDSA256  AuthMethod = 9
	AuthECDSA384  AuthMethod = 10
	AuthECDSA521  AuthMethod = 11
	AuthSignature AuthMethod = 14
)
